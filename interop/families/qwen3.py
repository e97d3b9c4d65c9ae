"""Qwen3 (Yang et al. 2025): Llama with norms on the heads of queries and keys, and heads of a width of their own."""

from interop import windows
from interop.families import llama
from interop.family import Family
from interop.fields import LENGTH, Fields, key
from interop.rotary import rotary


def _usual_layers(values, num_layers):
  first = values.get('max_window_layers', 28) if values.get('use_sliding_window', False) else num_layers
  return ['sliding_attention' if i >= first else 'full_attention' for i in range(num_layers)]


SIZES = (
  *(field for field in llama.SIZES if field.names != ('head_dim',)),
  key('head_dim', 'head_dim', 128),
  key('num_key_value_heads', 'num_kv_heads', 32),
  key('max_position_embeddings', LENGTH, 32768),
  windows.by_layer(_usual_layers, ('max_window_layers',), 4096, switch='use_sliding_window'),
  llama.biases('attention_bias', None),
  rotary(),
)
FAMILY = Family(
  name='qwen3',
  architectures=('Qwen3ForCausalLM', 'Qwen3Model'),
  fields=Fields(
    (key('vocab_size', 'vocab_size', 151936), key('intermediate_size', 'mlp_dim', 22016), *SIZES),
    llama.MODEL | {'attention.qk_norm': True},
  ),
  rules=llama.RULES,
  prefix=llama.PREFIX,
  duplicates=llama.DUPLICATES,
  buffers=llama.BUFFERS,
)
