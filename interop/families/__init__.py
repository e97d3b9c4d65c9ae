"""Families of Hugging Face models, a module each: which config.json is theirs, what its fields mean, its tensors."""

from interop.families import bart, bloom, gemma3, gpt2, gpt_neox, llama, mistral, mpt, qwen3, switch, t5
from interop.family import Family

_MODULES = (gpt2, llama, mistral, qwen3, gemma3, gpt_neox, bloom, mpt, t5, switch, bart)
FAMILIES: dict[str, Family] = {module.FAMILY.name: module.FAMILY for module in _MODULES}
