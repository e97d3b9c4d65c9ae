"""Precision as a transformation of any JAX function: see `precision.bf16`."""

from precision.apply import apply
from precision.bfloat16 import bf16

__all__ = ['apply', 'bf16']
