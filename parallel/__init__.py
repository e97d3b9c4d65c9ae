"""Layout of a run over devices: mesh, sharding rules, compilation."""

from parallel.compiling import compile_evaluation, compile_step
from parallel.mesh import AXES, check_mesh, make_mesh
from parallel.rules import Layout, batch_shardings, describe, parameter_shardings, place_gradients, state_shardings

__all__ = [
  'AXES',
  'Layout',
  'batch_shardings',
  'check_mesh',
  'compile_evaluation',
  'compile_step',
  'describe',
  'place_gradients',
  'make_mesh',
  'parameter_shardings',
  'state_shardings',
]
