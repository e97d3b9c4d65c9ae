"""Mistral (Jiang et al. 2023): Llama with a sliding window in every layer."""

from interop import windows
from interop.families import llama
from interop.family import Family
from interop.fields import LENGTH, Fields, key
from interop.rotary import rotary

FAMILY = Family(
  name='mistral',
  architectures=('MistralForCausalLM', 'MistralModel'),
  fields=Fields(
    (
      key('vocab_size', 'vocab_size', 32000),
      *llama.SIZES,
      key('intermediate_size', 'mlp_dim', 14336),
      key('num_key_value_heads', 'num_kv_heads', 8),
      key('max_position_embeddings', LENGTH, 4096 * 32),
      windows.in_every_layer('sliding_window', 4096),
      rotary(),
    ),
    llama.MODEL,
  ),
  rules=llama.RULES,
  prefix=llama.PREFIX,
  duplicates=llama.DUPLICATES,
  buffers=llama.BUFFERS,
)
