"""Families of Hugging Face models, a module each: which config.json is theirs, what its fields mean, where tensors are."""

from interop.families import gpt2, llama, mistral, qwen3
from interop.family import Family

FAMILIES: dict[str, Family] = {module.FAMILY.name: module.FAMILY for module in (gpt2, llama, mistral, qwen3)}
