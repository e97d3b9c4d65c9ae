"""Which parameters are trained, and how fast, by patterns over their paths."""

import dataclasses
from collections.abc import Sequence

import jax
import optax

from objectives import Task
from parallel import axes as ax
from precision import paths


def freeze(task: Task, patterns: Sequence[str]) -> Task:
  """The task with the parameters that the patterns select left as they are initialised.

  Raises:
    ValueError: a pattern selects nothing, or nothing is left to train.
  """
  names = _names(task.trainable)
  selected = paths.select(patterns, jax.tree.leaves(names), 'optimizer.frozen')
  trainable = jax.tree.map(lambda name, trained: trained and name not in selected, names, task.trainable)
  if not any(jax.tree.leaves(trainable)):
    raise ValueError(f'optimizer.frozen={tuple(patterns)} freezes every parameter; leave one out')
  return dataclasses.replace(task, trainable=trainable)


def scale_updates(scales: Sequence, logical_axes) -> optax.GradientTransformation:
  """Multiplies updates, weight decay included, by a factor that the path decides.

  Args:
    scales: (pattern, factor) pairs, the first that matches counts; a factor is a number, or a sequence of one for each
      repeat of a leaf that is stacked over layers.
    logical_axes: the trained parameters, a tuple of axis names at each leaf.

  Raises:
    ValueError: a pattern selects nothing, or (when the state is made) a sequence does not fit.
  """
  names = _names(logical_axes, is_leaf=_is_axes)
  selected = paths.select([pattern for pattern, _ in scales], jax.tree.leaves(names), 'optimizer.learning_rate_scale')

  def scale(name, axes, update):
    factor = scales[selected[name]][1] if name in selected else 1.0
    if not isinstance(factor, (tuple, list)):
      return update if factor == 1.0 else factor * update
    if axes[0] != ax.LAYERS or len(factor) != update.shape[0]:
      stacked = f'is stacked {update.shape[0]} times' if axes[0] == ax.LAYERS else 'is not stacked over layers'
      raise ValueError(
        f'optimizer.learning_rate_scale gives {name} {len(factor)} factors, but it {stacked}; give '
        'one number, or one for each repeat'
      )
    return jax.numpy.asarray(factor, update.dtype).reshape(-1, *[1] * (update.ndim - 1)) * update

  def apply(updates):
    return jax.tree.map(scale, names, logical_axes, updates)

  def init(params):
    jax.eval_shape(apply, params)
    return optax.EmptyState()

  return optax.GradientTransformation(init, lambda updates, state, params=None: (apply(updates), state))


def _names(tree, is_leaf=None):
  """The tree with its path at each leaf."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: jax.tree_util.keystr(path, simple=True, separator='/'), tree, is_leaf=is_leaf
  )


def _is_axes(node) -> bool:
  return isinstance(node, tuple)
