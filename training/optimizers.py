"""Optimizers from optax, with masks and matrix shapes derived from the parameters' logical axes.

A parameter tree is described by a tree of the same structure with a tuple of logical axes a leaf, such as
`('layers', 'embed', 'heads', 'head_dim')`. Layers are stacked on the axis `layers`, so what is defined on matrices
(muon, adafactor) works on each layer's own.
"""

import functools
import math

import jax
import jax.numpy as jnp
import optax

from parallel import axes as ax
from training import schedules, trainable

NAMES = ('adamw', 'adam', 'sgd', 'rmsprop', 'adafactor', 'lion', 'muon')


def build(
  optimizer_config, logical_axes, *, run_steps: int, warmup_steps: int, decay_steps: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """Builds the optimizer of a run.

  Gradients are clipped by global norm, scaled by the optimizer named in the config, and multiplied by the learning
  rate. Weight decay is decoupled (Loshchilov and Hutter 2019): every update also shrinks a matrix by learning_rate *
  weight_decay; `adam` has none. `adafactor` (Shazeer and Stern 2018) does not scale its updates by the parameters' RMS,
  and `muon` (Jordan 2024) scales them to that of adamw (Liu et al. 2025, eq. 4), so that a learning rate means the same
  in the three. Muon is for the matrices inside the layers; embeddings, head and vectors are left to adamw with
  `adam_learning_rate`. Biases of selection among experts go a step of `expert_bias_rate` against the sign of their
  gradient (see `model.routing`), whatever the optimizer and the schedule (Wang et al. 2024, algorithm 1).

  Args:
    optimizer_config: the group `optimizer` of the config.
    logical_axes: tree of tuples of axis names with the structure of the parameters that are trained.
    run_steps: updates of the whole run.
    warmup_steps: `optimizer_config.warmup` in steps.
    decay_steps: `optimizer_config.decay` in steps.

  Returns:
    The transformation, whose update takes the norm of the gradients as `grad_norm`, and whose state is a tree of
    arrays in which every moment has the shape of its parameter (except adafactor's), and the schedule from
    finished steps to the learning rate (muon: of the matrices).

  Raises:
    ValueError: the schedule's phases do not fit in the run, or a factor on the learning rate fits no parameter.
  """

  def schedule(peak):
    return schedules.build(
      optimizer_config, peak, run_steps=run_steps, warmup_steps=warmup_steps, decay_steps=decay_steps
    )

  learning_rate = schedule(optimizer_config.learning_rate)
  scale_by_learning_rate = optax.scale_by_learning_rate(learning_rate)
  if optimizer_config.name == 'muon':
    adam_learning_rate = optax.scale_by_learning_rate(schedule(optimizer_config.adam_learning_rate))
    scale_by_learning_rate = _partition(scale_by_learning_rate, adam_learning_rate, logical_axes)

  chain = [_clip_by_global_norm(optimizer_config.clip_norm)] if optimizer_config.clip_norm else []
  chain += _scale(optimizer_config, logical_axes)
  if optimizer_config.weight_decay and optimizer_config.name != 'adam':
    chain.append(optax.add_decayed_weights(optimizer_config.weight_decay, mask=matrices(logical_axes)))
  chain.append(scale_by_learning_rate)
  if optimizer_config.learning_rate_scale:
    chain.append(trainable.scale_updates(optimizer_config.learning_rate_scale, logical_axes))
  follows_load = _map_axes(lambda axes: ax.LOAD in axes, logical_axes)
  transform = _follow_load(optax.chain(*chain), follows_load, optimizer_config.expert_bias_rate)
  return optax.with_extra_args_support(transform), learning_rate


def matrices(logical_axes):
  """The same tree with True for weights that map one width to another, embedding table and head included.

  Norms, biases and position tables are False.
  """
  return _map_axes(
    lambda axes: bool({ax.EMBED, ax.RANK} & set(axes)) and len(set(_own(axes)) - {ax.LENGTH}) > 1, logical_axes
  )


def _own(axes) -> tuple[str, ...]:
  """The axes of one of the weights that are stacked over layers, and within a layer perhaps over experts."""
  axes = axes[axes[:1] == (ax.LAYERS,) :]
  return axes[axes[:1] == (ax.EXPERTS,) :]


def _follow_load(transform, follows_load, rate) -> optax.GradientTransformationExtraArgs:
  if not any(jax.tree.leaves(follows_load)):
    return transform
  transform = optax.with_extra_args_support(transform)

  def update(updates, state, params=None, **extra):
    changes, state = transform.update(updates, state, params, **extra)
    choose = lambda follows, gradient, change: -rate * jnp.sign(gradient) if follows else change
    return jax.tree.map(choose, follows_load, updates, changes), state

  return optax.GradientTransformationExtraArgs(transform.init, update)


def _clip_by_global_norm(max_norm: float) -> optax.GradientTransformationExtraArgs:
  # One factor for all leaves fuses into the update; optax's select by leaf keeps a clipped copy of every gradient.
  def clip(updates, state, params=None, *, grad_norm, **_):
    del params
    factor = max_norm / jnp.maximum(grad_norm, max_norm)
    return jax.tree.map(lambda update: factor * update, updates), state

  return optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), clip)


def _scale(optimizer_config, logical_axes) -> list[optax.GradientTransformation]:
  """The transformations that turn a gradient into the direction of an update."""
  adam = optax.scale_by_adam(optimizer_config.beta1, optimizer_config.beta2, optimizer_config.epsilon)
  trace = [optax.trace(optimizer_config.momentum)] if optimizer_config.momentum else []
  match optimizer_config.name:
    case 'adamw' | 'adam':
      return [adam]
    case 'sgd':
      return trace
    case 'rmsprop':
      return [optax.scale_by_rms(optimizer_config.beta2, optimizer_config.epsilon, eps_in_sqrt=False), *trace]
    case 'adafactor':
      return [_per_matrix(optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0)), logical_axes)]
    case 'lion':
      return [optax.scale_by_lion(optimizer_config.beta1, optimizer_config.beta2)]
    case 'muon':
      shapes = jax.tree.map(
        lambda axes, hidden: _dimension_numbers(axes) if hidden else optax.MaskedNode(),
        logical_axes,
        _hidden_matrices(logical_axes),
        is_leaf=_is_axes,
      )
      muon = optax.chain(
        optax.contrib.scale_by_muon(beta=optimizer_config.momentum, weight_dimension_numbers=lambda _: shapes),
        optax.stateless(lambda updates, _: jax.tree.map(_scale_to_adamw, updates, shapes)),
      )
      return [_partition(muon, adam, logical_axes)]
  raise ValueError(f'optimizer.name={optimizer_config.name!r} does not exist; choose one of {", ".join(NAMES)}')


def _partition(inside, outside, logical_axes) -> optax.GradientTransformation:
  """`inside` for the matrices inside the layers, `outside` for everything else."""
  labels = jax.tree.map(lambda hidden: 'inside' if hidden else 'outside', _hidden_matrices(logical_axes))
  return optax.partition({'inside': inside, 'outside': outside}, labels)


def _hidden_matrices(logical_axes):
  return jax.tree.map(
    lambda axes, matrix: matrix and ax.VOCAB not in axes, logical_axes, matrices(logical_axes), is_leaf=_is_axes
  )


def _dimension_numbers(axes) -> optax.contrib.MuonDimensionNumbers:
  """Which dimensions of a weight are its inputs and which its outputs.

  Weights are stored [layers, inputs, outputs] or [layers, experts, inputs, outputs].
  """
  dimensions = range(len(axes) - len(_own(axes)), len(axes))
  split = 1 if axes[dimensions[0]] in (ax.EMBED, ax.RANK) else len(dimensions) - 1
  return optax.contrib.MuonDimensionNumbers(tuple(dimensions[:split]), tuple(dimensions[split:]))


def _scale_to_adamw(update, shape):
  widths = [math.prod(update.shape[i] for i in dimensions) for dimensions in shape]
  return 0.2 * math.sqrt(max(widths)) * update


def _per_matrix(transform: optax.GradientTransformation, logical_axes) -> optax.GradientTransformation:
  """Applies `transform` to every matrix by itself, as `[inputs, outputs]`, and to every layer of other leaves."""

  def plan(leaf, axes, matrix):
    stacked = len(axes) - len(_own(axes))
    shape = leaf.shape[stacked:]
    if matrix:
      inputs, _ = _dimension_numbers(axes)
      width = math.prod(leaf.shape[i] for i in inputs)
      shape = (width, math.prod(shape) // width)
    return stacked, leaf.shape[:stacked] + shape

  is_matrix = matrices(logical_axes)

  def init(params):
    def init_leaf(leaf, axes, matrix):
      stacked, shape = plan(leaf, axes, matrix)
      return _vmapped(transform.init, stacked)(leaf.reshape(shape))

    return jax.tree.map(init_leaf, params, logical_axes, is_matrix)

  def update(updates, state, params):
    def update_leaf(leaf, leaf_state, param, axes, matrix):
      stacked, shape = plan(leaf, axes, matrix)
      function = _vmapped(transform.update, stacked)
      scaled, leaf_state = function(leaf.reshape(shape), leaf_state, param.reshape(shape))
      return scaled.reshape(leaf.shape), leaf_state

    structure = jax.tree.structure(updates)
    leaves = zip(*map(structure.flatten_up_to, (updates, state, params, logical_axes, is_matrix)), strict=True)
    scaled, states = zip(*[update_leaf(*leaf) for leaf in leaves], strict=True)
    return structure.unflatten(scaled), structure.unflatten(states)

  return optax.GradientTransformation(init, update)


def _vmapped(function, times: int):
  return functools.reduce(lambda mapped, _: jax.vmap(mapped), range(times), function)


def _map_axes(function, logical_axes):
  return jax.tree.map(function, logical_axes, is_leaf=_is_axes)


def _is_axes(node) -> bool:
  return isinstance(node, tuple)
