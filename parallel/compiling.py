"""Compiles pure single-device functions over a mesh."""

import functools

import jax
from jax.sharding import PartitionSpec

from parallel import axes
from parallel.rules import Layout


def compile_step(step, layout: Layout, state_shardings, batch_shardings):
  """Jits `step(state, batch) -> (state, metrics)`: the state stays sharded and is donated, metrics are replicated."""
  return jax.jit(
    _over(layout, step),
    donate_argnums=0,
    in_shardings=(state_shardings, batch_shardings),
    out_shardings=(state_shardings, layout.sharding(PartitionSpec())),
  )


def compile_evaluation(evaluate, layout: Layout, params_shardings, batch_shardings):
  """Jits `evaluate(params, batch) -> metrics`; metrics are replicated."""
  return jax.jit(
    _over(layout, evaluate),
    in_shardings=(params_shardings, batch_shardings),
    out_shardings=layout.sharding(PartitionSpec()),
  )


def _over(layout, function):
  @functools.wraps(function)
  def wrapped(*args):
    with axes.activation_sharding(layout):
      return function(*args)

  return wrapped
