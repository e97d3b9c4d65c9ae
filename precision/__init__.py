"""Transformations of any JAX function: mixed precision by policy, and named intermediates.

All of them are clients of one interpreter of jaxprs, see `interpreter`.
"""

from precision.apply import apply, policy
from precision.capture import capture
from precision.decoding import Decoder
from precision.interpreter import Interpreter, Site
from precision.mixed import bf16, mixed_precision
from precision.policy import Policy, describe

__all__ = [
  'Decoder',
  'Interpreter',
  'Policy',
  'Site',
  'apply',
  'bf16',
  'capture',
  'describe',
  'mixed_precision',
  'policy',
]
