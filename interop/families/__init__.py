"""Families of Hugging Face models, a module each: which config.json is theirs, what its fields mean, its tensors."""

from interop.families import bert, bloom, gemma3, gpt2, gpt_neox, llama, mistral, modernbert, mpt, qwen3, roberta, xlnet
from interop.family import Family

_MODULES = (gpt2, llama, mistral, qwen3, gemma3, gpt_neox, bloom, mpt, bert, roberta, modernbert, xlnet)
FAMILIES: dict[str, Family] = {module.FAMILY.name: module.FAMILY for module in _MODULES}
