"""Families of Hugging Face models, a module each: which config.json is theirs, what its fields mean, its tensors."""

from interop.families import (
  bart,
  bert,
  bloom,
  deepseek_v3,
  gemma3,
  gpt2,
  gpt_neox,
  gpt_oss,
  llama,
  mistral,
  mixtral,
  modernbert,
  mpt,
  qwen3,
  qwen3_moe,
  roberta,
  switch,
  t5,
  xlnet,
)
from interop.family import Family

_DENSE = (gpt2, llama, mistral, qwen3, gemma3, gpt_neox, bloom, mpt)
_WITH_EXPERTS = (mixtral, qwen3_moe, gpt_oss, deepseek_v3)
_ENCODERS = (bert, roberta, modernbert, xlnet)
_ENCODER_DECODERS = (t5, switch, bart)
_MODULES = _DENSE + _WITH_EXPERTS + _ENCODERS + _ENCODER_DECODERS
FAMILIES: dict[str, Family] = {module.FAMILY.name: module.FAMILY for module in _MODULES}
