"""Attention, cross-entropy and grouped products. Needs jax alone: the folder can be copied out and used by itself."""

from pallas_kernels.attention import Core, attention, attention_across, supports
from pallas_kernels.cross_entropy import CrossEntropy, linear_cross_entropy
from pallas_kernels.device import Device, target
from pallas_kernels.grouped import grouped_matmul
from pallas_kernels.reference import probabilities
from pallas_kernels.spec import AttentionSpec, Shapes

__all__ = [
  'AttentionSpec',
  'Core',
  'CrossEntropy',
  'Device',
  'Shapes',
  'attention',
  'attention_across',
  'grouped_matmul',
  'linear_cross_entropy',
  'probabilities',
  'supports',
  'target',
]
