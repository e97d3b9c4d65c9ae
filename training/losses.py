"""Terms added to an objective's loss that depend on the parameters alone."""

import dataclasses

import jax
import jax.numpy as jnp

from objectives import Task
from training import optimizers


def with_penalties(task: Task, optimizer_config) -> Task:
  """Adds L1 and L2 penalties on the matrices that are trained to a loss.

  Args:
    task: what is trained.
    optimizer_config: `l1_penalty` times the sum of |w| and `l2_penalty` times half the sum of w^2 are added.

  Returns:
    The task with that loss; `task` itself when both penalties are 0.
  """
  l1, l2 = optimizer_config.l1_penalty, optimizer_config.l2_penalty
  if not l1 and not l2:
    return task
  is_matrix = optimizers.matrices(task.trained(task.logical_axes))

  def penalised(params, batch, rng):
    mean, metrics = task.loss(params, batch, rng)
    with jax.named_scope('penalties'):
      for leaf, matrix in zip(jax.tree.leaves(task.trained(params)), jax.tree.leaves(is_matrix), strict=True):
        if matrix:
          mean += jnp.sum(l1 * jnp.abs(leaf) + 0.5 * l2 * jnp.square(leaf))
    return mean, metrics

  return dataclasses.replace(task, loss=penalised)
