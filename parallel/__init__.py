"""Layout of a run over devices: mesh, sharding rules, compilation."""

from parallel.compiling import compile_evaluation, compile_step
from parallel.mesh import check_mesh, make_mesh
from parallel.rules import (
  batch_shardings,
  data_parallel_size,
  describe,
  parameter_rules,
  parameter_shardings,
  state_shardings,
)

__all__ = [
  'batch_shardings',
  'check_mesh',
  'compile_evaluation',
  'compile_step',
  'data_parallel_size',
  'describe',
  'make_mesh',
  'parameter_rules',
  'parameter_shardings',
  'state_shardings',
]
