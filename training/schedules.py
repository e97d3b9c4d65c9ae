"""Learning-rate schedules: a linear warm-up, then one of the shapes in `NAMES`."""

import jax.numpy as jnp
import optax

NAMES = ('constant', 'linear', 'cosine', 'inverse_sqrt', 'wsd', 'step', 'exponential')
FOLLOW_LENGTH = ('linear', 'cosine', 'wsd')  # a longer run has other learning rates at the same step
HAVE_DECAY = ('wsd', 'step', 'exponential')  # what `decay_steps` says something to


def build(optimizer_config, peak: float, *, run_steps: int, warmup_steps: int, decay_steps: int) -> optax.Schedule:
  """Returns the function from finished steps to the learning rate of the next update.

  Warm-up rises by peak / warmup_steps an update and reaches the peak at update `warmup_steps`, so that no update is
  made with a learning rate of zero. The shape after it starts at the peak; `linear`, `cosine` and `wsd` reach
  `final_fraction * peak` when `run_steps` updates are done. `inverse_sqrt` is Vaswani et al. 2017, section 5.3, and
  `wsd` (warm-up, stable, decay) is Hu et al. 2024 (MiniCPM), section 4, with a linear decay.

  Args:
    optimizer_config: the group `optimizer` of the config.
    peak: the highest learning rate.
    run_steps: updates of the whole run.
    warmup_steps: updates of the warm-up; 0 = none. A run that is shorter ends within its warm-up.
    decay_steps: `wsd`: updates of the final decay; `step`, `exponential`: updates between two multiplications by
      `optimizer_config.decay_factor`.

  Raises:
    ValueError: the phases do not fit in the run.
  """
  body = _body(optimizer_config, peak, run_steps, warmup_steps, decay_steps)
  if not warmup_steps:
    return body
  warmup = optax.linear_schedule(peak / warmup_steps, peak, warmup_steps - 1)
  if warmup_steps == 1:
    warmup = optax.constant_schedule(peak)
  return optax.join_schedules([warmup, body], [warmup_steps])


def _body(optimizer_config, peak, run_steps, warmup_steps, decay_steps):
  """The shape after the warm-up, as a function of the updates made since."""
  name = optimizer_config.schedule
  final = peak * optimizer_config.final_fraction
  rest = max(run_steps - warmup_steps, 1)
  if name in HAVE_DECAY and decay_steps < 1:
    raise ValueError(
      f'schedule {name!r} needs optimizer.decay of at least one step; got {decay_steps}; '
      'type for example --config.optimizer.decay="{\'share\': 0.2}"'
    )
  match name:
    case 'constant':
      return optax.constant_schedule(peak)
    case 'linear':
      return optax.linear_schedule(peak, final, rest)
    case 'cosine':
      return optax.cosine_decay_schedule(peak, rest, optimizer_config.final_fraction)
    case 'inverse_sqrt':
      # The warm-up ended at the peak; without one the first update has it.
      start, first = max(warmup_steps, 1), min(warmup_steps, 1)
      return lambda count: peak * jnp.sqrt(start / (start + first + count))
    case 'wsd':
      stable = run_steps - warmup_steps - decay_steps
      if stable < 0:
        raise ValueError(
          f"schedule 'wsd' has {warmup_steps} steps of warm-up and {decay_steps} of decay in a run of "
          f'{run_steps}; make optimizer.warmup or optimizer.decay shorter, for example '
          '--config.optimizer.warmup="{\'share\': 0.1}"'
        )
      return optax.join_schedules(
        [optax.constant_schedule(peak), optax.linear_schedule(peak, final, decay_steps)], [stable]
      )
    case 'step' | 'exponential':
      return optax.exponential_decay(peak, decay_steps, optimizer_config.decay_factor, staircase=name == 'step')
  raise ValueError(f'optimizer.schedule={name!r} does not exist; choose one of {", ".join(NAMES)}')
