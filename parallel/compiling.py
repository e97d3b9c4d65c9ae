"""Compiles pure single-device functions over a mesh."""

import functools

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from parallel import axes, rules


def compile_step(step, mesh: Mesh, state_shardings, batch_shardings, zero_stage: int):
  """Jits `step(state, batch) -> (state, metrics)`: the state stays sharded and is donated, metrics are replicated.

  Parameters are stored as `zero_stage` says.
  """
  return jax.jit(
    _over(mesh, zero_stage, step),
    donate_argnums=0,
    in_shardings=(state_shardings, batch_shardings),
    out_shardings=(state_shardings, NamedSharding(mesh, PartitionSpec())),
  )


def compile_evaluation(evaluate, mesh: Mesh, params_shardings, batch_shardings, zero_stage: int):
  """Jits `evaluate(params, batch) -> metrics`; parameters are stored as `zero_stage` says."""
  return jax.jit(
    _over(mesh, zero_stage, evaluate),
    in_shardings=(params_shardings, batch_shardings),
    out_shardings=NamedSharding(mesh, PartitionSpec()),
  )


def _over(mesh, zero_stage, function):
  parameter_spec = functools.partial(rules.parameter_spec, zero_stage=zero_stage)

  @functools.wraps(function)
  def wrapped(*args):
    with axes.activation_sharding(mesh, rules.activation_spec, parameter_spec):
      return function(*args)

  return wrapped
