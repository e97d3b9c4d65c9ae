"""Gemma 3, text (Gemma Team 2025): norms before and after each branch, five local layers to a global one, two bases of
rotary positions, scaled embeddings."""

import math

from interop import rotary, windows
from interop.families import llama
from interop.family import Family
from interop.fields import ACTIVATIONS, LENGTH, Field, FieldError, Fields, free, key, must
from interop.rules import norm

_GLOBAL, _LOCAL = 1e6, 1e4


def _usual_layers(values, num_layers):
  every = values.get('sliding_window_pattern') or 6
  return ['full_attention' if (i + 1) % every == 0 else 'sliding_attention' for i in range(num_layers)]


def _read_rope(values):
  nested = values.get('rope_parameters')
  if nested is None:
    nested = {'full_attention': values.get('rope_scaling') or {}}
  unknown = [name for name in nested if name not in ('full_attention', 'sliding_attention')]
  if unknown:
    raise FieldError(f'rope_parameters.{unknown[0]} cannot be honoured; allowed are full_attention, sliding_attention')
  length = values.get('max_position_embeddings', 131072)
  ours = rotary.read_entries(
    nested.get('full_attention') or {}, 'rope_parameters.full_attention', values.get('rope_theta', _GLOBAL), length
  )
  local = rotary.read_entries(
    nested.get('sliding_attention') or {},
    'rope_parameters.sliding_attention',
    values.get('rope_local_base_freq', _LOCAL),
    length,
  )
  if local['rope.scaling'] != 'none':
    raise FieldError('rope_parameters.sliding_attention is scaled, which cannot be honoured; only default is')
  return ours | {'rope.local_theta': local['rope.theta']}


def _write_rope(model):
  scaling, _ = rotary.write_entries(model)
  local = model['rope.local_theta'] or model['rope.theta']
  written = {'rope_theta': model['rope.theta'], 'rope_local_base_freq': local}
  return written | ({'rope_scaling': scaling} if scaling else {})


def _read_scales(values):
  return {
    'embedding_scale': math.sqrt(values.get('hidden_size', 2304)),
    'attention.scale': values.get('query_pre_attn_scalar', 256) ** -0.5,
  }


def _write_scales(model):
  scale = model['attention.scale'] or model['head_dim'] ** -0.5
  return {'hidden_size': model['embed_dim'], 'query_pre_attn_scalar': round(scale**-2)}


FAMILY = Family(
  name='gemma3_text',
  architectures=('Gemma3ForCausalLM', 'Gemma3TextModel'),
  fields=Fields(
    (
      key('vocab_size', 'vocab_size', 262208),
      key('hidden_size', 'embed_dim', 2304),
      key('num_hidden_layers', 'num_layers', 26),
      key('num_attention_heads', 'num_heads', 8),
      key('num_key_value_heads', 'num_kv_heads', 4),
      key('head_dim', 'head_dim', 256),
      key('intermediate_size', 'mlp_dim', 9216),
      key('hidden_activation', 'activation', 'gelu_pytorch_tanh', {'gelu_pytorch_tanh': 'gelu_tanh'} | ACTIVATIONS),
      key('rms_norm_eps', 'norm_epsilon', 1e-6),
      key('attention_dropout', 'attention.dropout_rate', 0.0),
      key('tie_word_embeddings', 'tie_embeddings', True),
      key('max_position_embeddings', LENGTH, 131072),
      key('final_logit_softcapping', 'logit_softcap', None),
      llama.biases('attention_bias', None),
      windows.by_layer(_usual_layers, ('sliding_window_pattern', '_sliding_window_pattern'), 4096),
      Field(
        ('rope_parameters', 'rope_scaling', 'rope_theta', 'rope_local_base_freq', 'max_position_embeddings'),
        _read_rope,
        _write_rope,
      ),
      Field(('hidden_size', 'query_pre_attn_scalar'), _read_scales, _write_scales),
      must('use_bidirectional_attention', False, None),
      free('attn_logit_softcapping'),  # of Gemma 2: transformers' Gemma 3 does not apply it
    ),
    llama.MODEL | {'norm_position': 'sandwich', 'norm_unit_offset': True, 'attention.qk_norm': True},
  ),
  rules=tuple(rule for rule in llama.RULES if '_layernorm' not in rule.theirs)
  + (
    *norm('model.layers.{layer}.input_layernorm', '{layer}/attention_norm'),
    *norm('model.layers.{layer}.post_attention_layernorm', '{layer}/attention_post_norm'),
    *norm('model.layers.{layer}.pre_feedforward_layernorm', '{layer}/mlp_norm'),
    *norm('model.layers.{layer}.post_feedforward_layernorm', '{layer}/mlp_post_norm'),
  ),
  prefix=llama.PREFIX,
  duplicates=llama.DUPLICATES,
)
