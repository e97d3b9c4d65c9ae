"""From a resolved config to a compiled program: model, task and its transformations, optimizer, mesh."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
from jax.sharding import Mesh

import model as model_lib
import objectives
import parallel
import precision
from training import durations, losses, optimizers, trainable
from training.state import TrainState, init_state
from training.step import make_step


@dataclasses.dataclass(frozen=True)
class Lengths:
  """The durations of a config in steps; 0 = only at the end."""

  run: int
  log: int
  evaluation: int
  checkpoint: int
  sample: int
  warmup: int
  decay: int


@dataclasses.dataclass(frozen=True)
class Program:
  """What a run executes.

  Attributes:
    model: the pure functions of the model.
    task: what is trained.
    layout: where arrays lie, on which mesh.
    lengths: durations in steps.
    abstract_state: TrainState of ShapeDtypeStructs with shardings.
    batch_shardings: of each array of a batch.
    init: `init() -> TrainState`, sharded.
    step: `step(state, batch) -> (state, metrics)`, see `make_step`; the state is donated.
    evaluate: `evaluate(params, batch) -> metrics`, see the objective.
  """

  model: object
  task: objectives.Task
  layout: parallel.Layout
  lengths: Lengths
  abstract_state: TrainState
  batch_shardings: dict
  init: Callable
  step: Callable
  evaluate: Callable

  @property
  def mesh(self) -> Mesh:
    """The device mesh."""
    return self.layout.mesh


def build(config, epoch_steps: float | None = None, devices: Sequence[jax.Device] | None = None) -> Program:
  """Builds the program of a config whose model sizes are known; nothing is compiled yet.

  Args:
    config: the whole config, `model.vocab_size` given.
    epoch_steps: steps of one pass over the training data, for durations in epochs.
    devices: of the mesh; None: all. Those of a topology can be compiled for without being there.

  Raises:
    ValueError: a duration cannot be converted, or a parameter cannot be sharded over the mesh.
  """
  lengths = resolve_lengths(config, epoch_steps)
  model = model_lib.create(config.model)
  task = objectives.make_task(objectives.create(config.objective), model)
  task = dataclasses.replace(task, loss=precision.apply(config.precision, task.loss))
  task = trainable.freeze(task, config.optimizer.frozen)
  optimizer, schedule = optimizers.build(
    config.optimizer,
    task.trained(task.logical_axes),
    run_steps=lengths.run,
    warmup_steps=lengths.warmup,
    decay_steps=lengths.decay,
  )
  layout = parallel.Layout(parallel.make_mesh(config.mesh, devices), config.zero_stage, config.mesh.sequence_parallel)
  step = make_step(
    losses.with_penalties(task, config.optimizer),
    optimizer,
    schedule,
    seed=config.seed,
    accumulation_steps=config.optimizer.accumulation_steps,
    ema_decay=config.optimizer.ema_decay,
    place=functools.partial(parallel.place_gradients, logical_axes=task.trained(task.logical_axes), layout=layout),
  )

  create_state = lambda: init_state(task, optimizer, jax.random.key(config.seed), config.optimizer.ema_decay > 0)
  abstract_state = jax.eval_shape(create_state)
  shardings = parallel.state_shardings(abstract_state, abstract_state.params, task.logical_axes, layout)
  abstract_state = jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), abstract_state, shardings
  )
  batch_shardings = parallel.batch_shardings(task.batch_axes, layout)
  return Program(
    model,
    task,
    layout,
    lengths,
    abstract_state,
    batch_shardings,
    init=jax.jit(create_state, out_shardings=shardings),
    step=parallel.compile_step(step, layout, shardings, batch_shardings),
    evaluate=parallel.compile_evaluation(
      lambda params, batch: task.loss(params, batch, None)[1], layout, shardings.eval_params, batch_shardings
    ),
  )


def resolve_lengths(config, epoch_steps: float | None = None) -> Lengths:
  """The config's durations in steps. Raises ValueError where a unit cannot be converted."""

  def steps(duration, run_steps=None):
    return durations.steps(
      duration,
      batch_tokens=config.data.batch_tokens,
      run_steps=run_steps,
      sequence_length=config.data.sequence_length,
      epoch_steps=epoch_steps,
    )

  run = steps(config.train.steps)
  return Lengths(
    run=run,
    log=steps(config.train.log_every, run),
    evaluation=steps(config.train.eval_every, run),
    checkpoint=steps(config.train.checkpoint_every, run),
    sample=steps(config.train.sample_every, run),
    warmup=steps(config.optimizer.warmup, run),
    decay=steps(config.optimizer.decay, run),
  )
