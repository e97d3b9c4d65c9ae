"""One training step as a pure function: gradient, accumulation, update, and the guard against non-finite values."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from model import Metric
from objectives import Task, merge
from training.state import TrainState


def make_step(
  task: Task,
  optimizer,
  schedule,
  *,
  seed: int,
  accumulation_steps: int = 1,
  ema_decay: float = 0.0,
  place: Callable = lambda gradients: gradients,
):
  """Builds `step(state, batch) -> (state, metrics)`.

  Args:
    task: what is trained, its loss transformed or not.
    optimizer: an optax GradientTransformation that takes `grad_norm`, see `optimizers.build`.
    schedule: learning rate by number of updates, for the metrics.
    seed: dropout keys follow from it and the number of updates.
    accumulation_steps: microbatches that a batch is cut into; the result is that of the whole batch.
    ema_decay: decay of the moving average of parameters; 0 when the state has none.
    place: puts gradients, a tree of what is trained, where they are summed up.

  Returns:
    The step. A non-finite loss or gradient leaves the state as it was. Metrics are those of the loss and `total_loss`
    (the differentiated mean), `grad_norm` (of what is trained, before clipping), `learning_rate`, `finite` (1 or 0).
  """

  def gradient(params, batch, key):
    loss = lambda trained: task.loss(merge(trained, params), batch, key)
    value, gradients = jax.value_and_grad(loss, has_aux=True)(task.trained(params))
    return value, place(gradients)

  base_key = jax.random.key(seed)

  def step(state: TrainState, batch):
    key = jax.random.fold_in(base_key, state.updates)
    (total_loss, metrics), grads = accumulate(gradient, accumulation_steps)(state.params, batch, key)
    grad_norm = optax.tree.norm(grads)
    finite = jnp.isfinite(total_loss) & jnp.isfinite(grad_norm)
    values = {
      'total_loss': total_loss,
      'grad_norm': grad_norm,
      'finite': finite.astype(jnp.float32),
      'learning_rate': jnp.asarray(schedule(state.updates), jnp.float32),
    }
    metrics |= {name: Metric(value, jnp.ones(())) for name, value in values.items()}
    # A branch and not a select: the update then happens in the donated buffers, without copies of the moments.
    return jax.lax.cond(finite, update, lambda state, *_: state, state, grads, grad_norm), metrics

  def update(state: TrainState, grads, grad_norm) -> TrainState:
    trained = task.trained(state.params)
    changes, opt_state = optimizer.update(grads, state.opt_state, trained, grad_norm=grad_norm)
    trained = optax.apply_updates(trained, changes)
    ema = None if state.ema is None else _average(state.ema, trained, ema_decay, state.updates)
    return TrainState(state.updates + 1, merge(trained, state.params), opt_state, ema)

  return step


def accumulate(gradient, num_microbatches: int):
  """`gradient` over microbatches, one after the other, with the result of the whole batch.

  Each mean is weighted by what it is over, the weight of its metric `loss`, so that the sum is the mean of the whole
  batch; metrics are added up. Rows are dealt round-robin, so that a batch sharded over devices stays where it is.
  """
  if num_microbatches == 1:
    return gradient

  def accumulated(params, batch, key):
    deal = lambda x: x.reshape(-1, num_microbatches, *x.shape[1:]).swapaxes(0, 1)
    keys = jax.random.split(key, num_microbatches)

    def add(total, microbatch_and_key):
      (mean, metrics), grads = gradient(params, *microbatch_and_key)
      weighted = jax.tree.map(lambda x: x * metrics['loss'].weight, (mean, grads))
      return jax.tree.map(jnp.add, total, (weighted, metrics)), None

    (mean, metrics), grads = jax.eval_shape(gradient, params, jax.tree.map(lambda x: deal(x)[0], batch), keys[0])
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), ((mean, grads), metrics))
    ((mean, grads), metrics), _ = jax.lax.scan(add, zeros, (jax.tree.map(deal, batch), keys))
    count = jnp.maximum(metrics['loss'].weight, 1.0)
    return (mean / count, metrics), jax.tree.map(lambda g: g / count, grads)

  return accumulated


def _average(ema, params, decay, updates):
  # A short history averages less: the ramp of TensorFlow's ExponentialMovingAverage(num_updates).
  decay = jnp.minimum(decay, (1.0 + updates) / (10.0 + updates))
  return jax.tree.map(lambda old, new: old * decay + new * (1.0 - decay), ema, params)
