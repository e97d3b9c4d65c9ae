"""The state of a run: one pytree of arrays, sharded like its parameters."""

import dataclasses

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """Everything a step changes.

  Attributes:
    updates: int32 scalar, updates applied so far; steps that were not finite do not count.
    params: float32 parameters.
    opt_state: the optimizer's state.
    ema: moving average of the parameters, or None.
  """

  updates: jax.Array
  params: dict
  opt_state: object
  ema: dict | None

  @property
  def eval_params(self) -> dict:
    """What evaluation and samples use: the moving average where there is one."""
    return self.params if self.ema is None else self.ema


def init_state(model, optimizer, key, use_ema: bool) -> TrainState:
  """A fresh state from a PRNG key; traceable, so that jit can create it already sharded."""
  params = model.init(key)
  return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params),
                    jax.tree.map(jnp.copy, params) if use_ema else None)
