"""Layout of a run over devices and processes: mesh, sharding rules, compilation, hosts."""

from parallel import hosts
from parallel.compiling import compile_evaluation, compile_step
from parallel.mesh import AXES, check_mesh, make_mesh
from parallel.rules import (
  Layout,
  batch_shardings,
  describe,
  make_layout,
  parameter_shardings,
  place_gradients,
  state_shardings,
)

__all__ = [
  'AXES',
  'Layout',
  'batch_shardings',
  'check_mesh',
  'compile_evaluation',
  'compile_step',
  'describe',
  'hosts',
  'make_layout',
  'make_mesh',
  'parameter_shardings',
  'place_gradients',
  'state_shardings',
]
