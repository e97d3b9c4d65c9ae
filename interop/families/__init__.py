"""Families of Hugging Face models, a module each: which config.json is theirs, what its fields mean, its tensors."""

from interop.families import bloom, deepseek_v3, gemma3, gpt2, gpt_neox, gpt_oss, llama, mistral, mixtral, mpt, qwen3
from interop.families import qwen3_moe
from interop.family import Family

_DENSE = (gpt2, llama, mistral, qwen3, gemma3, gpt_neox, bloom, mpt)
_WITH_EXPERTS = (mixtral, qwen3_moe, gpt_oss, deepseek_v3)
FAMILIES: dict[str, Family] = {module.FAMILY.name: module.FAMILY for module in _DENSE + _WITH_EXPERTS}
