"""DeepSeek-V3 (DeepSeek-AI 2024): latent attention, a sigmoid router with biases of selection, shared experts.

Layers for predicting several tokens (`num_nextn_predict_layers`), which stand behind the last one in the files, are no
part of the model; transformers does not load them either.
"""

import math

from interop.families import llama, mixtral, qwen3_moe
from interop.family import Family
from interop.fields import LENGTH, Field, FieldError, Fields, free, key, must, refused
from interop.rotary import rotary
from interop.rules import Rule, dense, norm

_ROPE = rotary()
_HEAD = ('qk_nope_head_dim', 'qk_rope_head_dim')


def _read_heads(values):
  rotary_dim = values.get('qk_rope_head_dim', 64)
  head_dim = values.get('qk_nope_head_dim', 128) + rotary_dim
  for name, wanted in (('qk_head_dim', head_dim), ('head_dim', rotary_dim)):
    if values.get(name) not in (None, wanted):
      raise refused(name, values[name], f'{wanted}, which follows from {" and ".join(_HEAD)}')
  ours = _ROPE.read({name: value for name, value in values.items() if name in _ROPE.names})
  scale = 0.0
  if ours['rope.scaling'] == 'yarn' and ours['rope.mscale_all_dim'] and ours['rope.factor'] > 1:
    scale = head_dim**-0.5 * (0.1 * ours['rope.mscale_all_dim'] * math.log(ours['rope.factor']) + 1.0) ** 2
  return ours | {'head_dim': head_dim, 'attention.latent.rotary_dim': rotary_dim, 'attention.scale': scale}


def _write_heads(model):
  rotary_dim = model['attention.latent.rotary_dim']
  return {'qk_nope_head_dim': model['head_dim'] - rotary_dim, 'qk_rope_head_dim': rotary_dim} | _ROPE.write(model)


def _read_kv_heads(values):
  heads = values.get('num_attention_heads', 128)
  if values.get('num_key_value_heads') not in (None, heads):
    raise refused('num_key_value_heads', values['num_key_value_heads'], f'that of num_attention_heads, {heads}')
  return {}


def _read_experts(values):
  width, shared = values.get('moe_intermediate_size', 2048), values.get('n_shared_experts', 1)
  if not shared:
    raise refused('n_shared_experts', shared, 'at least 1')
  return {'moe.mlp_dim': width, 'moe.shared_mlp_dim': shared * width}


def _write_experts(model):
  width, shared = model['moe.mlp_dim'], model['moe.shared_mlp_dim']
  if not shared or shared % width:
    raise FieldError(f'model.moe.shared_mlp_dim={shared} must be a multiple of model.moe.mlp_dim={width}')
  return {'moe_intermediate_size': width, 'n_shared_experts': shared // width}


FAMILY = Family(
  name='deepseek_v3',
  architectures=('DeepseekV3ForCausalLM', 'DeepseekV3Model'),
  fields=Fields(
    (
      key('vocab_size', 'vocab_size', 129280),
      *(field for field in llama.SIZES if field.names != ('head_dim',)),
      key('hidden_size', 'embed_dim', 7168),
      key('num_hidden_layers', 'num_layers', 61),
      key('num_attention_heads', 'num_heads', 128),
      Field(
        ('num_key_value_heads', 'num_attention_heads'),
        _read_kv_heads,
        lambda model: {'num_key_value_heads': model['num_kv_heads']},
      ),
      key('intermediate_size', 'mlp_dim', 18432),
      key('max_position_embeddings', LENGTH, 4096),
      Field((*_HEAD, 'qk_head_dim', 'head_dim', *_ROPE.names), _read_heads, _write_heads),
      key('rope_interleave', 'rope.interleaved', True),
      key('v_head_dim', 'attention.latent.value_dim', 128),
      key('kv_lora_rank', 'attention.latent.key_value_rank', 512),
      Field(
        ('q_lora_rank',),
        lambda values: {'attention.latent.query_rank': values.get('q_lora_rank', 1536) or 0},
        lambda model: {'q_lora_rank': model['attention.latent.query_rank'] or None},
      ),
      llama.biases('attention_bias', None),
      Field(('moe_intermediate_size', 'n_shared_experts'), _read_experts, _write_experts),
      key('n_routed_experts', 'moe.num_experts', 256),
      key('num_experts_per_tok', 'moe.experts_per_token', 8),
      key('n_group', 'moe.num_groups', 8),
      key('topk_group', 'moe.groups_per_token', 4),
      key('norm_topk_prob', 'moe.normalize', True),
      key('routed_scaling_factor', 'moe.routed_scale', 2.5),
      key('first_k_dense_replace', 'moe.first_dense', 3),
      must('moe_layer_freq', 1),
      must('scoring_func', 'sigmoid'),
      must('topk_method', 'noaux_tc'),
      free('num_nextn_predict_layers', 'ep_size', 'seq_aux', 'aux_loss_alpha', 'pretraining_tp', 'auto_map'),
      mixtral.TRAINING,
    ),
    llama.MODEL | {'moe.router': 'sigmoid', 'moe.selection_bias': True, 'moe.balance_loss': 0.0},
    aliases={'num_local_experts': 'n_routed_experts', 'num_mtp_layers': 'num_nextn_predict_layers'},
  ),
  rules=(
    *llama.RULES,
    *dense('model.layers.{layer}.self_attn.q_a_proj', '{layer}/attention/query_down'),
    *norm('model.layers.{layer}.self_attn.q_a_layernorm', '{layer}/attention/query_down_norm'),
    *dense('model.layers.{layer}.self_attn.q_b_proj', '{layer}/attention/query_up'),
    *dense('model.layers.{layer}.self_attn.kv_a_proj_with_mqa', '{layer}/attention/key_value_down'),
    *norm('model.layers.{layer}.self_attn.kv_a_layernorm', '{layer}/attention/key_value_down_norm'),
    *dense('model.layers.{layer}.self_attn.kv_b_proj', '{layer}/attention/key_value_up'),
    *qwen3_moe.EXPERTS,
    Rule('model.layers.{layer}.mlp.gate.e_score_correction_bias', ('{layer}/mlp/router/selection_bias',)),
    *dense('model.layers.{layer}.mlp.shared_experts.gate_proj', '{layer}/mlp/shared/gate'),
    *dense('model.layers.{layer}.mlp.shared_experts.up_proj', '{layer}/mlp/shared/up'),
    *dense('model.layers.{layer}.mlp.shared_experts.down_proj', '{layer}/mlp/shared/down'),
  ),
  prefix=llama.PREFIX,
  duplicates=llama.DUPLICATES,
  buffers=llama.BUFFERS + r'|model\.layers\.61\..*',
)
