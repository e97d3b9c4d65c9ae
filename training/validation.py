"""Checks a whole config: each room checks its own group, and what joins two groups is checked here."""

from collections.abc import Mapping

import jax

import model
import objectives
import parallel
from data import corpora, packing
from data.tokenizers import base
from data.tokenizers import training as tokenizer_training
from precision.apply import DTYPES
from training import durations, optimizers, schedules, trainable
from training.configs import ConfigError


def validate(config, device_count: int) -> None:
  """Refuses what can be seen to be wrong before data is read and anything is compiled.

  Raises:
    ConfigError: says what was given, what is allowed and what to type.
  """
  try:
    model.check(config.model)
    objectives.check(config.objective)
    _check_data(config)
    optimizers.check(config.optimizer)
    if config.precision.dtype not in DTYPES:
      raise ValueError(f'precision.dtype={config.precision.dtype!r} does not exist; choose one of {", ".join(DTYPES)}')
    _check_run(config.train)
    mesh = parallel.check_mesh(config.mesh, device_count)
    _check_batch(config, parallel.data_parallel_size(mesh))
    _check_schedule(config)
    _check_layout(config, mesh)
  except (ValueError, FileNotFoundError, ImportError) as error:
    raise ConfigError(str(error)) from error


def _check_data(config) -> None:
  if config.seed < 0:
    raise ValueError(f'seed={config.seed} must not be negative')
  tokenizers = ('bytes', *tokenizer_training.TRAINERS, 'file')
  for key, value, allowed in (('tokenizer', config.data.tokenizer, tokenizers),
                              ('normalization', config.data.normalization, base.NORMALIZATIONS)):
    if value not in allowed:
      raise ValueError(f'data.{key}={value!r} does not exist; choose one of {", ".join(allowed)}')
  if config.data.tokenizer == 'file':
    tokenizer_training.load_file(config.data.tokenizer_path, config.data.normalization)
  for key, value, least in (('vocab_size', config.data.vocab_size, 1), ('num_workers', config.data.num_workers, 0)):
    if value < least:
      raise ValueError(f'data.{key}={value} must be at least {least}')
  if not 0 <= config.data.validation_fraction < 1:
    raise ValueError(f'data.validation_fraction={config.data.validation_fraction} must be at least 0 and below 1')
  packing.check(objectives.create(config.objective).row_length(config.data.sequence_length), config.data.packing)
  if not all(isinstance(component, Mapping) for component in config.data.mixture):
    raise ValueError(f"data.mixture={config.data.mixture} must be a tuple of mappings such as "
                     "{'corpus': 'text', 'path': 'FILE', 'weight': 0.5}")
  corpora.find(config.data)


def _check_run(train_config) -> None:
  if isinstance(train_config.steps, Mapping) and 'share' in train_config.steps:
    raise ValueError(f'train.steps={train_config.steps} is a share of itself; give it in another unit, for example '
                     f'--config.train.steps=1000')
  for key, duration in (('steps', train_config.steps), ('log_every', train_config.log_every)):
    if not (sum(duration.values()) if isinstance(duration, Mapping) else duration):
      raise ValueError(f'train.{key}={duration} must be above 0')
  for key, value in (('keep_last', train_config.keep_last), ('max_bad_steps', train_config.max_bad_steps),
                     ('sample_tokens', train_config.sample_tokens)):
    if value < 1:
      raise ValueError(f'train.{key}={value} must be at least 1')
  for key, value in (('eval_batches', train_config.eval_batches),
                     ('early_stopping_patience', train_config.early_stopping_patience)):
    if value < 0:
      raise ValueError(f'train.{key}={value} must not be negative')


def _check_batch(config, shards: int) -> None:
  length, tokens = config.data.sequence_length, config.data.batch_tokens
  accumulation_steps = config.optimizer.accumulation_steps
  if length < 1 or tokens < 1 or tokens % length:
    raise ValueError(f'data.batch_tokens={tokens} must be a positive multiple of data.sequence_length={length}; for '
                     f'example --config.data.batch_tokens={max(round(tokens / max(length, 1)), 1) * max(length, 1)}')
  rows, parts = tokens // length, accumulation_steps * shards
  if rows % parts:
    raise ValueError(f'data.batch_tokens={tokens} is {rows} rows of data.sequence_length={length}, which do not divide '
                     f'into optimizer.accumulation_steps={accumulation_steps} times {shards} shards of the mesh; for '
                     f'example --config.data.batch_tokens={-(-rows // parts) * parts * length}')
  if config.model.positions == 'learned' and 0 < config.model.max_length < length:
    raise ValueError(f'model.max_length={config.model.max_length} positions are learned but data.sequence_length='
                     f'{length}; set model.max_length=0 for as many')


def _check_schedule(config) -> None:
  """Builds the schedule where its durations are known before the data is."""
  chosen = (config.train.steps, config.optimizer.warmup, config.optimizer.decay)
  if any(isinstance(duration, Mapping) and 'epochs' in duration for duration in chosen):
    return
  batch = {'batch_tokens': config.data.batch_tokens, 'sequence_length': config.data.sequence_length}
  run_steps = durations.steps(config.train.steps, **batch)
  warmup_steps, decay_steps = [durations.steps(duration, run_steps=run_steps, **batch) for duration in chosen[1:]]
  schedules.build(config.optimizer, config.optimizer.learning_rate, run_steps=run_steps, warmup_steps=warmup_steps,
                  decay_steps=decay_steps)


def _check_layout(config, mesh) -> None:
  """Asks for the sharding of every parameter, and which ones are trained and how fast."""
  parallel.parameter_rules(config.zero_stage)
  model_config = config.model.copy_and_resolve_references()
  with model_config.unlocked():
    # The tokenizer's size, not known yet, is rounded up to a multiple of 64.
    model_config.vocab_size = model_config.vocab_size or 64
    model_config.max_length = model_config.max_length or config.data.sequence_length
  created = model.create(model_config)
  params = jax.eval_shape(created.init, jax.random.key(0))
  parallel.parameter_shardings(params, created.logical_axes(), mesh, config.zero_stage)
  task = objectives.make_task(objectives.create(config.objective), created)
  task = trainable.freeze(task, config.optimizer.frozen)
  trainable.scale_updates(config.optimizer.learning_rate_scale, task.trained(task.logical_axes)).init(
    task.trained(params))
