"""Checks what joins several keys of a config; what one key may hold stands in configs/base.py."""

from collections.abc import Mapping

import jax

import model
import objectives
import parallel
from data import augmentation, corpora, packing
from data.tokenizers import training as tokenizer_training
from parallel import axes
from training import durations, schedules, trainable
from training.configs import ConfigError


def validate(config, device_count: int) -> None:
  """Refuses what can be seen to be wrong before data is read and anything is compiled.

  Raises:
    ConfigError: says what was given, what is allowed and what to type.
  """
  try:
    model.check(config.model)
    objectives.check(config.objective, config.model.family, config.data.corpus)
    _check_data(config)
    mesh = parallel.check_mesh(config.mesh, device_count)
    layout = parallel.Layout(mesh, config.zero_stage, config.mesh.sequence_parallel)
    _check_batch(config, layout)
    _check_schedule(config)
    _check_layout(config, layout)
    _check_context(config, layout)
  except (ValueError, FileNotFoundError, ImportError) as error:
    raise ConfigError(str(error)) from error


def _check_data(config) -> None:
  special = None
  if config.data.tokenizer == 'file':
    special = tokenizer_training.load_file(config.data.tokenizer_path, config.data.normalization).special
  objective = objectives.create(config.objective, special)
  packing.check(objective.row_length(config.data.sequence_length), config.data.packing)
  augmentation.check(config.data)
  corpora.find(config.data)


def _check_batch(config, layout) -> None:
  length, tokens = config.data.sequence_length, config.data.batch_tokens
  accumulation_steps = config.optimizer.accumulation_steps
  if tokens % length:
    raise ValueError(
      f'data.batch_tokens={tokens} must be a multiple of data.sequence_length={length}; for example '
      f'--config.data.batch_tokens={max(round(tokens / length), 1) * length}'
    )
  shards = layout.data_parallel_size
  rows, parts = tokens // length, accumulation_steps * shards
  if rows % parts:
    raise ValueError(
      f'data.batch_tokens={tokens} is {rows} rows of data.sequence_length={length}, which do not divide '
      f'into optimizer.accumulation_steps={accumulation_steps} times {shards} shards of the mesh; for '
      f'example --config.data.batch_tokens={-(-rows // parts) * parts * length}'
    )
  if length % layout.length_shards:
    raise ValueError(
      f'data.sequence_length={length} does not divide over mesh.sequence={config.mesh.sequence}'
      + (f' times mesh.tensor={config.mesh.tensor}' if config.mesh.sequence_parallel else '')
      + f'; for example --config.data.sequence_length={-(-length // layout.length_shards) * layout.length_shards}'
    )
  if config.model.positions == 'learned' and 0 < config.model.max_length < length:
    raise ValueError(
      f'model.max_length={config.model.max_length} positions are learned but data.sequence_length='
      f'{length}; set model.max_length=0 for as many'
    )


def _check_context(config, layout) -> None:
  """Refuses attention that the devices that split rows cannot compute together."""
  model_config, attention_config = config.model, config.model.attention
  devices = layout.parts(axes.LENGTH)
  if devices == 1:
    return
  if attention_config.context_parallel == 'all_to_all':
    heads = model_config.num_heads // layout.parts(axes.HEADS)
    if heads % devices:
      raise ValueError(
        f"model.attention.context_parallel='all_to_all' gives each of mesh.sequence={devices} devices as many heads, "
        f'but there are {heads} to share; choose a mesh.sequence that divides them, or '
        "--config.model.attention.context_parallel='ring'"
      )
    return
  given = 'model.attention.window' if attention_config.window else "model.positions='alibi'"
  if model_config.family != 'decoder' and (attention_config.window or model_config.positions == 'alibi'):
    raise ValueError(
      f"model.attention.context_parallel='ring' cannot compute {given} where tokens see later ones, as in "
      f"model.family={model_config.family!r}; use --config.model.attention.context_parallel='all_to_all'"
    )
  length = config.data.sequence_length
  if model_config.family != 'encoder' and length % (2 * devices):
    raise ValueError(
      f'a causal ring halves what each of mesh.sequence={devices} devices has of data.sequence_length={length}; for '
      f'example --config.data.sequence_length={-(-length // (2 * devices)) * 2 * devices}'
    )


def _check_schedule(config) -> None:
  """Builds the schedule where its durations are known before the data is."""
  chosen = (config.train.steps, config.optimizer.warmup, config.optimizer.decay)
  if any(isinstance(duration, Mapping) and 'epochs' in duration for duration in chosen):
    return
  batch = {'batch_tokens': config.data.batch_tokens, 'sequence_length': config.data.sequence_length}
  run_steps = durations.steps(config.train.steps, **batch)
  warmup_steps, decay_steps = [durations.steps(duration, run_steps=run_steps, **batch) for duration in chosen[1:]]
  schedules.build(
    config.optimizer,
    config.optimizer.learning_rate,
    run_steps=run_steps,
    warmup_steps=warmup_steps,
    decay_steps=decay_steps,
  )


def _check_layout(config, layout) -> None:
  """Asks for the sharding of every parameter, and which ones are trained and how fast."""
  model_config = config.model.copy_and_resolve_references()
  with model_config.unlocked():
    # The tokenizer's size, not known yet, is rounded up to a multiple of 64.
    model_config.vocab_size = model_config.vocab_size or 64
    model_config.max_length = model_config.max_length or config.data.sequence_length
  created = model.create(model_config)
  params = jax.eval_shape(created.init, jax.random.key(0))
  parallel.parameter_shardings(params, created.logical_axes(), layout)
  task = objectives.make_task(objectives.create(config.objective), created)
  task = trainable.freeze(task, config.optimizer.frozen)
  trainable.scale_updates(config.optimizer.learning_rate_scale, task.trained(task.logical_axes)).init(
    task.trained(params)
  )
