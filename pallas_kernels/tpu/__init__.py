"""Attention for TPU in Pallas."""

from pallas_kernels.tpu.attention import attend, supports

__all__ = ['attend', 'supports']
