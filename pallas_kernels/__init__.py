"""Attention and cross-entropy kernels. Needs jax alone: the folder can be copied out and used by itself."""

from pallas_kernels.attention import attention, supports
from pallas_kernels.cross_entropy import CrossEntropy, linear_cross_entropy
from pallas_kernels.device import Device, target
from pallas_kernels.reference import probabilities
from pallas_kernels.spec import AttentionSpec, Shapes

__all__ = [
  'AttentionSpec',
  'CrossEntropy',
  'Device',
  'Shapes',
  'attention',
  'linear_cross_entropy',
  'probabilities',
  'supports',
  'target',
]
