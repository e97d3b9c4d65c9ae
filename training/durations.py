"""Durations: a number of steps, or a mapping with exactly one unit, such as `{'epochs': 3}`, as configs hold them."""

import math
from collections.abc import Mapping

UNITS = ('steps', 'tokens', 'examples', 'epochs', 'share')


def steps(
  duration, *, batch_tokens: int, sequence_length: int, run_steps: int | None = None, epoch_steps: float | None = None
) -> int:
  """Converts a duration to optimizer steps, rounded up, so that only zero gives 0.

  Args:
    duration: a number of steps, or a mapping with exactly one of `UNITS`.
    batch_tokens: global tokens a step.
    sequence_length: tokens of one example.
    run_steps: steps of the whole run; None while they are not known, when a share is refused.
    epoch_steps: steps (any positive real number) of one pass over the data; None when unknown, and epochs refused.

  Returns:
    The number of steps.

  Raises:
    ValueError: the unit cannot be converted here.
  """
  if not isinstance(duration, Mapping):
    return duration
  unit, amount = next(iter(duration.items()))
  steps_per_unit = {
    'steps': 1,
    'tokens': 1 / batch_tokens,
    'examples': sequence_length / batch_tokens,
    'epochs': epoch_steps,
    'share': run_steps,
  }[unit]
  if steps_per_unit is None:
    raise ValueError(
      f'a duration in {unit} has no meaning here; got {dict(duration)}; give it in another unit '
      f'({", ".join(other for other in UNITS if other != unit)})'
    )
  # The tolerance keeps a product such as 0.07 * 100 = 7.000000000000001 from costing a step.
  return math.ceil(amount * steps_per_unit * (1 - 1e-12))
