"""Compiles pure single-device functions over a mesh."""

import functools

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from parallel import axes, rules


def compile_step(step, mesh: Mesh, state_shardings, batch_shardings):
  """Jits `step(state, batch) -> (state, metrics)`: the state stays sharded and is donated, metrics are replicated."""
  return jax.jit(_with_activations(step, mesh), donate_argnums=0,
                 in_shardings=(state_shardings, batch_shardings),
                 out_shardings=(state_shardings, NamedSharding(mesh, PartitionSpec())))


def compile_evaluation(evaluate, mesh: Mesh, params_shardings, batch_shardings):
  """Jits `evaluate(params, batch) -> metrics`."""
  return jax.jit(_with_activations(evaluate, mesh), in_shardings=(params_shardings, batch_shardings),
                 out_shardings=NamedSharding(mesh, PartitionSpec()))


def _with_activations(function, mesh):
  @functools.wraps(function)
  def wrapped(*args):
    with axes.activation_sharding(mesh, rules.activation_spec):
      return function(*args)
  return wrapped
