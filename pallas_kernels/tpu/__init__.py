"""Attention for TPU in Pallas."""

from pallas_kernels.tpu.attention import attend, gradients, supports

__all__ = ['attend', 'gradients', 'supports']
