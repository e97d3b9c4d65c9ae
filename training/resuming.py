"""What a run may change when it goes on, and what a new length does to its learning rate."""

import json
import pathlib

from training import configs, program, schedules

# How a run is watched and where it is computed, not what it computes.
_MAY_CHANGE = (
  'train.',
  'mesh.',
  'zero_stage',
  'model.layer_loop',
  'model.remat',
  'model.attention.implementation',
  'data.num_workers',
  'data.cache_dir',
)


def check_same_run(config, workdir):
  """Compares a resolved config with the one that the directory's run was last started with.

  Returns:
    That config, or None where the directory holds no run.

  Raises:
    ConfigError: they differ in what decides the result.
  """
  path = pathlib.Path(workdir) / 'config.json'
  if not path.exists():
    return None
  before = configs.from_json(json.loads(path.read_text(encoding='utf-8')))
  old, new = configs.flat(before), configs.flat(config)
  changed = [key for key in new if old[key] != new[key] and not key.startswith(_MAY_CHANGE)]
  if changed:
    words = '; '.join(f'{key} was {old[key]!r} and is {new[key]!r}' for key in changed)
    raise configs.ConfigError(
      f'{workdir} holds a run of another config: {words}. Give the same values to resume it, '
      'or another --workdir to start a new run'
    )
  return before


def check_length(before, config, epoch_steps: float | None, progress) -> str:
  """Refuses a new length that changes the learning rates of a run, unless `train.allow_new_length` says that it may.

  Args:
    before: the config that the run was last started with.
    config: the one that it goes on with, which differs from it in what a run may change.
    epoch_steps: steps of one pass over the training data.
    progress: `Progress` of the checkpoint from which the run goes on.

  Returns:
    What happens to the learning rate, in words; '' if nothing does.

  Raises:
    ConfigError: the learning rates change and the config does not allow it.
  """
  old, new = (program.resolve_lengths(c, epoch_steps) for c in (before, config))
  if progress.step == 0 or _phases(before, old) == _phases(config, new):
    return ''
  # A step that was not finite does not advance the schedule.
  updates = progress.step - progress.bad_steps
  was, now, end = (
    _learning_rate(config, lengths, count) for lengths, count in ((old, updates), (new, updates), (new, new.run))
  )
  words = (
    f'train.steps was {before.train.steps} and is {config.train.steps}: after step {progress.step:,} the '
    f'learning rate would have been {was:.3g} and becomes {now:.3g}, in the end, at step {new.run:,}, {end:.3g}'
  )
  if not config.train.allow_new_length:
    raise configs.ConfigError(
      f'{words}. Type --config.train.allow_new_length=True to go on like this, or give '
      f'train.steps={before.train.steps} again'
    )
  return words


def how_to_go_on(config, progress, run_steps: int) -> str:
  """What to change so that a finished run is trained longer."""
  if progress.step < run_steps:
    return 'early stopping ended it; raise train.early_stopping_patience, or set it to 0, to train it longer'
  if config.optimizer.schedule in schedules.FOLLOW_LENGTH:
    return 'raise train.steps and set train.allow_new_length=True to train it longer'
  return 'raise train.steps to train it longer'


def _phases(config, lengths) -> tuple:
  """The lengths in steps that the learning rate depends on."""
  name = config.optimizer.schedule
  return (
    lengths.warmup,
    lengths.decay if name in schedules.HAVE_DECAY else None,
    lengths.run if name in schedules.FOLLOW_LENGTH else None,
  )


def _learning_rate(config, lengths, updates: int) -> float:
  schedule = schedules.build(
    config.optimizer,
    config.optimizer.learning_rate,
    run_steps=lengths.run,
    warmup_steps=lengths.warmup,
    decay_steps=lengths.decay,
  )
  return float(schedule(updates))
