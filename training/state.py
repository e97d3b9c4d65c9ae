"""The state of a run: one pytree of arrays, sharded like its parameters."""

import dataclasses

import jax
import jax.numpy as jnp

from objectives import Task, merge


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """Everything a step changes.

  Attributes:
    updates: int32 scalar, updates applied so far; steps that were not finite do not count.
    params: float32 parameters.
    opt_state: the optimizer's state, of the parameters that are trained.
    ema: moving average of the parameters that are trained, None in the place of others; or None.
  """

  updates: jax.Array
  params: dict
  opt_state: object
  ema: dict | None

  @property
  def eval_params(self) -> dict:
    """What evaluation and samples use: the moving average where there is one."""
    return self.params if self.ema is None else merge(self.ema, self.params)


def init_state(task: Task, optimizer, key, use_ema: bool) -> TrainState:
  """A fresh state from a PRNG key; traceable, so that jit can create it already sharded."""
  params = task.init(key)
  trained = task.trained(params)
  return TrainState(
    jnp.zeros((), jnp.int32), params, optimizer.init(trained), jax.tree.map(jnp.copy, trained) if use_ema else None
  )
