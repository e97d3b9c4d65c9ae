"""Terms added to an objective's loss that depend on the parameters alone."""

import jax
import jax.numpy as jnp

from training import optimizers


def with_penalties(loss, optimizer_config, logical_axes):
  """Adds L1 and L2 penalties on matrices to a loss.

  Args:
    loss: `loss(params, batch, rng) -> (mean, sums)`.
    optimizer_config: `l1_penalty` times the sum of |w| and `l2_penalty` times half the sum of w^2 are added.
    logical_axes: tree of tuples of axis names with the structure of the parameters.

  Returns:
    A loss of the same form; `loss` itself when both penalties are 0.
  """
  l1, l2 = optimizer_config.l1_penalty, optimizer_config.l2_penalty
  if not l1 and not l2:
    return loss
  is_matrix = jax.tree.leaves(optimizers.matrices(logical_axes))

  def penalised(params, batch, rng):
    mean, sums = loss(params, batch, rng)
    with jax.named_scope('penalties'):
      for leaf, matrix in zip(jax.tree.leaves(params), is_matrix, strict=True):
        if matrix:
          mean += jnp.sum(l1 * jnp.abs(leaf) + 0.5 * l2 * jnp.square(leaf))
    return mean, sums

  return penalised
