"""Qwen3 with experts (Yang et al. 2025): many narrow ones, whose gates may be left as the probabilities they are."""

from interop.families import llama, mixtral
from interop.family import Family
from interop.fields import LENGTH, Field, Fields, free, key, refused
from interop.rotary import rotary
from interop.rules import dense


def _has_experts(first, every, num_layers):
  return [i >= first and (i - first + 1) % every == 0 for i in range(num_layers)]


def _read_heads(values):
  embed_dim, heads = values.get('hidden_size', 2048), values.get('num_attention_heads', 32)
  return {'embed_dim': embed_dim, 'num_heads': heads, 'head_dim': values.get('head_dim') or embed_dim // heads}


def _write_heads(model):
  names = {'hidden_size': 'embed_dim', 'num_attention_heads': 'num_heads', 'head_dim': 'head_dim'}
  return {theirs: model[ours] for theirs, ours in names.items()}


def _read_number(values):
  number = values.get('num_experts', values.get('num_local_experts', 128))
  if values.get('num_local_experts', number) != number:
    raise refused('num_local_experts', values['num_local_experts'], f'the value of num_experts, {number}')
  return {'moe.num_experts': number}


def _read_layers(values):
  every, without = values.get('decoder_sparse_step', 1), values.get('mlp_only_layers') or []
  if not without:
    return {'moe.first_dense': 0, 'moe.every': every}
  count = values.get('num_hidden_layers', 24)
  wanted = [(i + 1) % every == 0 and i not in without for i in range(count)]
  for period in range(1, count + 1):
    for first in range(count):
      if any(wanted) and _has_experts(first, period, count) == wanted:
        return {'moe.first_dense': first, 'moe.every': period}
  raise refused('mlp_only_layers', without, 'the first layers, and behind them all but each n-th one')


def _write_layers(model):
  first, every = model['moe.first_dense'], model['moe.every']
  if not first:
    return {'decoder_sparse_step': every, 'mlp_only_layers': []}
  layers = _has_experts(first, every, model['num_layers'])
  return {'decoder_sparse_step': 1, 'mlp_only_layers': [i for i, has in enumerate(layers) if not has]}


def _read_window(values):
  # transformers gives it to every layer, whatever max_window_layers says.
  window = values.get('sliding_window', 4096) if values.get('use_sliding_window', False) else 0
  return {'attention.window': window or 0, 'attention.pattern': ('local',) if window else ('global',)}


def _write_window(model):
  window = model['attention.window'] or None
  return {'sliding_window': window, 'use_sliding_window': window is not None}


EXPERTS = (
  *dense('model.layers.{layer}.mlp.gate', '{layer}/mlp/router'),
  *dense('model.layers.{layer}.mlp.experts.{expert}.gate_proj', '{layer}/mlp/experts/gate'),
  *dense('model.layers.{layer}.mlp.experts.{expert}.up_proj', '{layer}/mlp/experts/up'),
  *dense('model.layers.{layer}.mlp.experts.{expert}.down_proj', '{layer}/mlp/experts/down'),
)
FAMILY = Family(
  name='qwen3_moe',
  architectures=('Qwen3MoeForCausalLM', 'Qwen3MoeModel'),
  fields=Fields(
    (
      key('vocab_size', 'vocab_size', 151936),
      *(field for field in llama.SIZES if field.names != ('head_dim',)),
      Field(('hidden_size', 'num_attention_heads', 'head_dim'), _read_heads, _write_heads),
      key('num_hidden_layers', 'num_layers', 24),
      key('intermediate_size', 'mlp_dim', 6144),
      key('num_key_value_heads', 'num_kv_heads', 4),
      key('max_position_embeddings', LENGTH, 32768),
      Field(
        ('num_experts', 'num_local_experts'), _read_number, lambda model: {'num_experts': model['moe.num_experts']}
      ),
      key('num_experts_per_tok', 'moe.experts_per_token', 8),
      key('moe_intermediate_size', 'moe.mlp_dim', 768),
      key('norm_topk_prob', 'moe.normalize', False),
      Field(('decoder_sparse_step', 'mlp_only_layers', 'num_hidden_layers'), _read_layers, _write_layers),
      Field(('use_sliding_window', 'sliding_window'), _read_window, _write_window),
      llama.biases('attention_bias', None),
      rotary(),
      free('max_window_layers'),
      mixtral.TRAINING,
    ),
    llama.MODEL | {'attention.qk_norm': True, 'moe.router': 'softmax'},
  ),
  rules=llama.RULES + EXPERTS,
  prefix=llama.PREFIX,
  duplicates=llama.DUPLICATES,
  buffers=llama.BUFFERS,
)
