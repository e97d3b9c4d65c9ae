"""The training loop: dispatch a step, read the one before it, and at boundaries evaluate, save and sample."""

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable

import jax

import data
import parallel
from training import counting, evaluation, hardware, heap
from training import metrics as metrics_lib
from training import params as params_lib
from training.program import Program
from training.state import TrainState


class TrainingAborted(RuntimeError):
  """The run cannot go on: too many steps in a row were not finite."""


@dataclasses.dataclass
class Progress:
  """The host's part of a run's state, saved as JSON with each checkpoint.

  Attributes:
    step: batches trained on, steps that were not finite included.
    bad_steps: steps that were not finite and changed nothing.
    bad_in_a_row: those since the last finite one.
    seconds: time spent in training so far, over all processes.
    best_loss: lowest validation loss, or None.
    evaluations_since_best: evaluations without a better one.
  """

  step: int = 0
  bad_steps: int = 0
  bad_in_a_row: int = 0
  seconds: float = 0.0
  best_loss: float | None = None
  evaluations_since_best: int = 0


class Stopwatch:
  """Seconds spent training, pauses left out."""

  def __init__(self):
    self._start = time.perf_counter()

  def __call__(self) -> float:
    return time.perf_counter() - self._start

  @contextlib.contextmanager
  def paused(self):
    start = time.perf_counter()
    try:
      yield
    finally:
      self._start += time.perf_counter() - start


@dataclasses.dataclass
class Loop:
  """One process's part of a run, from where `progress` stands.

  Attributes:
    config: the resolved config.
    program: what is executed.
    dataset: what it is trained on.
    batches: the endless stream of training batches, at `progress.step`; of each the rows of this process.
    state: the training state.
    progress: the host's counters.
    checkpoints: where the state is saved.
    writer: of metrics.jsonl and TensorBoard.
    console: what the user sees.
    sample: writes samples for (step, params), or None.
    watchdog: is told whenever the run goes on.
  """

  config: object
  program: Program
  dataset: data.Dataset
  batches: data.Batches
  state: TrainState
  progress: Progress
  checkpoints: object
  writer: metrics_lib.MetricsWriter
  console: object
  sample: Callable | None
  watchdog: parallel.hosts.Watchdog

  def __post_init__(self):
    self._watch = Stopwatch()
    self._step = parallel.hosts.together(self.program.step)
    self._eval_step = parallel.hosts.together(self.program.evaluate)
    self._rows = self.config.data.batch_tokens // self.config.data.sequence_length
    self._seconds_before = self.progress.seconds
    self._lap = None
    self._step_flops = None
    self._last = {}
    self._last_eval = (None, {})
    self._saved_step = self.progress.step
    self._sampled_step = None

  def run(self, stop: Callable[[int], bool]) -> bool:
    """Trains to the end, or until `stop(step)` says so after a step; returns whether the end was reached.

    Raises:
      TrainingAborted: `train.max_bad_steps` steps in a row were not finite.
    """
    lengths = self.program.lengths
    self.console.start(lengths.run, self.progress.step)
    pending, finished = None, self.finished
    while not finished:
      batch = self._placed(next(self.batches))
      self._step_flops = self._step_flops or counting.step_flops(self.program.model, batch)
      self.state, metrics = self._step(self.state, batch)
      self.progress.step += 1
      if pending:
        self._read(*pending)
      pending = (self.progress.step, metrics)
      stopping = stop(self.progress.step)
      finished = self.progress.step >= lengths.run
      if stopping or finished or self._at_boundary():
        self._read(*pending)
        pending = None
        finished = finished or self._boundary()
      if stopping and not finished:
        self._save()
        return False
    self._finish()
    return True

  def summary(self) -> dict:
    """What `summary.json` holds; `final_loss` is of the last step that was logged."""
    evaluated = self._last_eval[1]
    return {
      'step': self.progress.step,
      'tokens': self._tokens(self.progress.step),
      'params': self.program.model.num_params,
      'final_loss': self._last.get('loss', math.nan),
      'eval_loss': evaluated.get('eval/loss', math.nan),
      'bits_per_byte': evaluated.get('eval/bits_per_byte', math.nan),
      'perplexity': evaluated.get('eval/perplexity', math.nan),
      'tokens_per_second': self._tokens(self.progress.step) / max(self.progress.seconds, 1e-9),
      'seconds': self.progress.seconds,
      'bad_steps': self.progress.bad_steps,
      'params_sha256': params_lib.params_sha256(self.state.params),
    }

  @property
  def finished(self) -> bool:
    """Whether all steps are done, or early stopping has ended the run."""
    return self.progress.step >= self.program.lengths.run or self._stopped_early()

  def _read(self, step: int, metrics) -> None:
    """Waits for the metrics of a step, counts it, and logs it if it is due."""
    metrics = jax.device_get(metrics)
    self.watchdog.alive()
    if metrics.pop('finite').value:
      self.progress.bad_in_a_row = 0
    else:
      self._count_bad_step(step, metrics)
    self.progress.seconds = self._seconds_before + self._watch()
    if self._lap is None:  # the first step of a process compiles: throughput counts from here
      self._lap = (step, self._watch())
      if jax.default_backend() == 'cpu':
        heap.keep_if_it_fits()
    if step == 1 or _due(step, self.program.lengths.log) or step == self.program.lengths.run:
      self._log(step, metrics)

  def _count_bad_step(self, step, metrics):
    self.progress.bad_steps += 1
    self.progress.bad_in_a_row += 1
    self.console.message(
      f'step {step:,}: loss {metrics["total_loss"].value} and gradient norm '
      f'{metrics["grad_norm"].value} are not both finite; the step was skipped '
      f'({self.progress.bad_in_a_row} in a row)'
    )
    if self.progress.bad_in_a_row >= self.config.train.max_bad_steps:
      raise TrainingAborted(
        f'{self.progress.bad_in_a_row} steps in a row were not finite (train.max_bad_steps), up to step {step}; '
        'lower optimizer.learning_rate, lengthen optimizer.warmup or set optimizer.clip_norm, and look at '
        f'metrics.jsonl; the last checkpoint is of step {self._saved_step}'
      )

  def _log(self, step, metrics):
    line = {
      'tokens': self._tokens(step),
      **self.program.task.summarize(metrics, self.dataset.train.bytes_per_target),
      'bad_steps': self.progress.bad_steps,
      'seconds': self.progress.seconds,
    }
    since, start = self._lap
    if step > since:
      rate = (self._tokens(step) - self._tokens(since)) / (self._watch() - start)
      line |= {'tokens_per_second': rate} | self._utilisation(rate)
      self._lap = (step, self._watch())
    self._last = line
    self.writer.write(step, line)
    self.console.log(step, line)

  def _utilisation(self, tokens_per_second) -> dict:
    with self._watch.paused():  # measures the peak of a CPU the first time
      peak = hardware.peak_flops(list(self.program.mesh.devices.flat), self.config.precision.dtype)
    if peak is None:
      return {}
    return {'mfu': tokens_per_second / self.config.data.batch_tokens * self._step_flops / peak}

  def _at_boundary(self) -> bool:
    lengths = self.program.lengths
    return any(_due(self.progress.step, every) for every in (lengths.evaluation, lengths.checkpoint, lengths.sample))

  def _boundary(self) -> bool:
    """Evaluates, saves and samples what is due; returns whether early stopping ends the run."""
    step, lengths = self.progress.step, self.program.lengths
    with self._watch.paused():
      if _due(step, lengths.evaluation):
        self._evaluate()
      if _due(step, lengths.checkpoint):
        self._save()
      if _due(step, lengths.sample):
        self._write_samples()
    if self._stopped_early():
      self.console.message(
        f'stopping early: {self.progress.evaluations_since_best} evaluations without a better '
        f'validation loss than {self.progress.best_loss:.4f}'
      )
      return True
    return False

  def _stopped_early(self) -> bool:
    patience = self.config.train.early_stopping_patience
    return 0 < patience <= self.progress.evaluations_since_best

  def _finish(self):
    with self._watch.paused():
      if self._last_eval[0] != self.progress.step:
        self._evaluate()
      self._save()
      self._write_samples()
      self.checkpoints.wait()

  def _evaluate(self):
    if not self.dataset.validation.num_documents:
      return
    special = self.dataset.tokenizer.special
    own_rows = parallel.hosts.local_rows(self.program.batch_shardings, self._rows)
    maximum = self.config.train.eval_batches
    batches = self._watched(evaluation.batches(self.config, self.dataset.validation, special, maximum, own_rows))
    summarize = functools.partial(
      self.program.task.summarize, bytes_per_target=self.dataset.validation.bytes_per_target
    )
    result = evaluation.evaluate(self._eval_step, self.state.eval_params, map(self._placed, batches), summarize)
    metrics = {f'eval/{name}': value for name, value in result.items()}
    self._last_eval = (self.progress.step, metrics)
    if self.progress.best_loss is None or result['loss'] < self.progress.best_loss:
      self.progress.best_loss, self.progress.evaluations_since_best = result['loss'], 0
    else:
      self.progress.evaluations_since_best += 1
    self.writer.write(self.progress.step, metrics)
    self.console.evaluation(self.progress.step, metrics)

  def _save(self):
    step, (eval_step, evaluated) = self.progress.step, self._last_eval
    metadata = {'progress': dataclasses.asdict(self.progress), 'batches': self.batches.get_state()}
    self.checkpoints.save(step, self.state, metadata, metric=evaluated.get('eval/loss') if eval_step == step else None)
    self._saved_step = step
    self.watchdog.alive()

  def _write_samples(self):
    if self.sample is not None and self._sampled_step != self.progress.step:
      self.sample(self.progress.step, self.state.eval_params)
      self._sampled_step = self.progress.step

  def _watched(self, batches):
    for batch in batches:
      self.watchdog.alive()
      yield batch

  def _placed(self, batch):
    return parallel.hosts.global_batch(batch, self.program.batch_shardings, self._rows)

  def _tokens(self, step: int) -> int:
    return step * self.config.data.batch_tokens


def _due(step: int, every: int) -> bool:
  return every > 0 and step % every == 0
