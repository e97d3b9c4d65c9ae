"""From a config and a directory to a trained model: set up, resume, train, write down what came out."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable

import jax

import data
import objectives
import parallel
from training import cards, configs, descriptions, directory, plots, resolution, resuming, runs, signals, validation
from training import checkpoints as checkpoints_lib
from training import console as console_lib
from training import metrics as metrics_lib
from training import program as program_lib
from training.loop import Loop, Progress


def train(config, workdir, *, stop_after: int = 0, sampler: Callable | None = None) -> bool:
  """Trains the run of a directory: from the beginning, or on from its last checkpoint.

  Args:
    config: the whole config, as `configs.load` gives it.
    workdir: the run directory; made if absent.
    stop_after: stop after this step as a signal would; 0 = do not.
    sampler: `sampler(config, decoder, params, tokenizer, prompts) -> texts` for samples.txt, or None.

  Returns:
    True when the run is finished; False when it was stopped and saved, to be started again.

  Raises:
    ConfigError: a mistake in the config, before anything is compiled.
    CheckpointError: a checkpoint is damaged or does not fit.
    TrainingAborted: too many steps in a row were not finite.
  """
  validation.validate(config, jax.device_count())
  workdir = pathlib.Path(workdir)
  with contextlib.ExitStack() as stack:
    stop_request = stack.enter_context(signals.StopRequest())
    console = stack.enter_context(console_lib.make_console())
    dataset = read_data(config, console)
    config = resolution.resolve(config, dataset.tokenizer)
    before = resuming.check_same_run(config, workdir)
    console.message(descriptions.of_data(dataset))
    rows = config.data.batch_tokens // config.data.sequence_length
    epoch_steps = dataset.num_rows / rows
    program = program_lib.build(config, epoch_steps)
    console.message(descriptions.of_program(config, program))
    if program.mesh.size > 1:
      params = program.abstract_state.params
      console.message(parallel.describe(params, program.task.logical_axes, program.layout))
    checkpoints = stack.enter_context(checkpoints_lib.Checkpoints(workdir / 'checkpoints', config.train.keep_last))
    objective = objectives.create(config.objective, resolution.special_tokens(config, dataset.tokenizer.special))
    examples = data.augmented(objective.examples, config.data.augmentation, dataset.tokenizer.special)
    batches = data.train_batches(dataset, rows, config.seed, examples, config.data.augmentation.random_crop)
    stack.callback(batches.close)
    state, progress = _start(config, program, checkpoints, batches, console)
    if before and (change := resuming.check_length(before, config, epoch_steps, progress)):
      console.message(change)
    directory.write_identity(config, dataset.tokenizer, workdir)
    directory.keep_origin(config, dataset.tokenizer, workdir)
    writer = stack.enter_context(metrics_lib.MetricsWriter(workdir, progress.step, config.train.tensorboard))
    sample = None
    if sampler and objective.generates:
      generator = objective.generator(program.model)
      sample = directory.sample_writer(config, generator, dataset.tokenizer, sampler, workdir, console)
    loop = Loop(config, program, dataset, batches, state, progress, checkpoints, writer, console, sample)
    if loop.finished and directory.summary_step(workdir) == progress.step:
      advice = resuming.how_to_go_on(config, progress, program.lengths.run)
      console.message(f'{workdir} is finished at step {progress.step:,}; {advice}')
      return True
    finished = loop.run(lambda step: step == stop_after or stop_request.requested is not None)
    checkpoints.wait()
    plots.write_plots(workdir)
    if finished:
      summary = loop.summary()
      metrics_lib.write_summary(workdir, summary)
      _write_card(config, program.model, summary, workdir)
    console.close()
    console.message(
      f'finished at step {progress.step:,}: {workdir}/summary.json'
      if finished
      else f'stopped and saved at step {progress.step:,}; the same command goes on from there'
    )
    return finished


def _write_card(config, model, summary, workdir):
  command = f'python train.py --config={workdir}/config.json --workdir=NEW_DIRECTORY'
  card = cards.card(
    config, name=workdir.name, num_params=model.num_params, summary=summary, command=command, source=config.init_from
  )
  cards.write(workdir, card)


def read_data(config, console) -> data.Dataset:
  """What the objective of a config is trained and evaluated on."""
  row_length = objectives.create(config.objective).row_length(config.data.sequence_length)
  return data.prepare(config.data, row_length, config.seed, console.task, objectives.reserved(config.objective))


def _start(config, program, checkpoints, batches, console):
  """The state and progress of the last checkpoint, or fresh ones."""
  step = checkpoints.latest_step()
  if step is not None:
    state, metadata = checkpoints.restore(step, program.abstract_state)
    batches.set_state(metadata['batches'])
    console.message(f'going on from the checkpoint of step {step:,}')
    return state, Progress(**metadata['progress'])
  state = program.init()
  if config.init_from:
    state = _with_params(state, program.abstract_state, runs.load_run(config.init_from))
    console.message(f'parameters from {config.init_from}')
  return state, Progress()


def _with_params(state, abstract_state, run):
  """The state with the parameters of another run, which must have the same names and shapes."""
  shapes = lambda tree: jax.tree.map(lambda leaf: leaf.shape, tree)
  if shapes(run.params) != shapes(state.params):
    raise configs.ConfigError(
      f'init_from={run.workdir}: its parameters do not have the shapes of this model; '
      f'compare {run.workdir}/config.json with the model group, data.tokenizer included'
    )
  place = lambda abstract: jax.tree.map(lambda leaf, spec: jax.device_put(leaf, spec.sharding), run.params, abstract)
  ema = None if state.ema is None else place(abstract_state.ema)
  return dataclasses.replace(state, params=place(abstract_state.params), ema=ema)
