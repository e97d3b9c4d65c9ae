"""Counts of training: parameters, FLOPs, bytes, seconds; what accelerators can do. Numbers in, numbers out."""

from scaling.flops import Work, head_work, petaflops_days, six_nd, tower_work
from scaling.hardware import ACCELERATORS, Accelerator
from scaling.memory import (
  FLOAT32_ADAM,
  MIXED_ADAM,
  ModelStates,
  Widths,
  activation_bytes_per_layer,
  common_rule,
  model_states,
)
from scaling.parameters import Parameters
from scaling.roofline import Bound, Exchange

__all__ = [
  'ACCELERATORS',
  'FLOAT32_ADAM',
  'MIXED_ADAM',
  'Accelerator',
  'Bound',
  'Exchange',
  'ModelStates',
  'Parameters',
  'Widths',
  'Work',
  'activation_bytes_per_layer',
  'common_rule',
  'head_work',
  'model_states',
  'petaflops_days',
  'six_nd',
  'tower_work',
]
