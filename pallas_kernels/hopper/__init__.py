"""Attention for NVIDIA Hopper in Mosaic GPU."""

from pallas_kernels.hopper.attention import attend, supports

__all__ = ['attend', 'supports']
