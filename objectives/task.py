"""What is trained, as one object; what acts on it (adapters, learned scales, freezing) maps a task to a task."""

import dataclasses
from collections.abc import Callable

import jax

from objectives.protocol import Objective


@dataclasses.dataclass(frozen=True)
class Task:
  """A loss with what it is a function of.

  Attributes:
    init: from a PRNG key to the parameters; traceable.
    logical_axes: the tree of the parameters with a tuple of logical axis names at each leaf.
    trainable: the same tree with True where a leaf is trained; others have no gradient and no optimizer memory.
    loss: `loss(params, batch, rng) -> (mean, metrics)`, see `Objective`.
    batch_axes: logical axes of each array of a batch.
    summarize: from metrics to what is reported, see `Objective`.
  """

  init: Callable
  logical_axes: dict
  trainable: dict
  loss: Callable
  batch_axes: dict[str, tuple[str, ...]]
  summarize: Callable

  def trained(self, tree):
    """A tree with the structure of the parameters, None (which jax takes for no leaf at all) where frozen."""
    return jax.tree.map(lambda keep, leaf: leaf if keep else None, self.trainable, tree)


def make_task(objective: Objective, model) -> Task:
  """Training every parameter of a model for an objective."""
  axes = model.logical_axes()
  trainable = jax.tree.map(lambda _: True, axes, is_leaf=lambda node: isinstance(node, tuple))
  return Task(model.init, axes, trainable, objective.loss(model), objective.batch_axes, objective.summarize)


def merge(trained, params):
  """The parameters with the leaves of `trained`, a tree of `Task.trained`, in the place of their own."""
  return jax.tree.map(lambda new, old: old if new is None else new, trained, params, is_leaf=lambda x: x is None)
