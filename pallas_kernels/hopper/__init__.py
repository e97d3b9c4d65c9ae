"""Attention for NVIDIA Hopper in Mosaic GPU."""

from pallas_kernels.hopper.attention import attend, gradients, supports

__all__ = ['attend', 'gradients', 'supports']
