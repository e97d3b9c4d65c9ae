"""What a run shows while it runs: a progress bar on a terminal, plain lines anywhere else."""

import os
import sys
import time


def make_console(stream=None):
  """Chooses by the stream.

  Args:
    stream: text file; default `sys.stdout`.

  Returns:
    `ProgressBar` if the stream is a terminal, else `PlainLines`. Both have `start`, `log`, `evaluation`, `message`
    and `close`, and close themselves as context managers.
  """
  stream = stream or sys.stdout
  return ProgressBar(stream) if stream.isatty() else PlainLines(stream)


def make_silent_console():
  """A console that shows nothing, for all processes but the first."""
  return PlainLines(open(os.devnull, 'w', encoding='utf-8'))


class PlainLines:
  """One line for each call, for log files."""

  def __init__(self, stream):
    self._stream = stream

  def start(self, total: int, done: int = 0):
    """Says how many steps the run has and how many are done already."""
    self._time_left = TimeLeft(total)
    self._total = total
    self.message(f'training from step {done:,} to {total:,}')

  def log(self, step: int, metrics: dict):
    """Shows the training metrics of a step."""
    left = self._time_left(step)
    self.message(f'step {step:,}/{self._total:,}  {describe_training(metrics)}' + (f'  {left} left' if left else ''))

  def evaluation(self, step: int, metrics: dict):
    """Shows the `eval/...` metrics of a step."""
    self.message(describe_evaluation(step, metrics))

  def task(self, description: str, total: int):
    """Announces work before the training and returns `advance(n)`, to be called as it gets done."""
    self.message(f'{description} ...')
    return lambda n: None

  def message(self, text: str):
    """Shows any text on lines of its own."""
    print(text, file=self._stream, flush=True)

  def close(self):
    """Ends the display."""

  def __enter__(self):
    return self

  def __exit__(self, *exception):
    self.close()


class ProgressBar(PlainLines):
  """A bar with loss, tokens/s and time left on the last line; all else scrolls above it."""

  def __init__(self, stream):
    super().__init__(stream)
    self._progress = None

  def start(self, total: int, done: int = 0):
    from rich import console, progress

    self._time_left = TimeLeft(total)
    self._progress = progress.Progress(
      progress.BarColumn(bar_width=None),
      progress.TextColumn('{task.completed:,}/{task.total:,}'),
      progress.TextColumn('{task.description}', markup=False),
      console=console.Console(file=self._stream),
      refresh_per_second=4,
      expand=True,
    )
    self._task = self._progress.add_task('compiling', total=total, completed=done)
    self._progress.start()

  def log(self, step: int, metrics: dict):
    left = self._time_left(step)
    description = describe_training(metrics) + (f'  {left} left' if left else '')
    self._progress.update(self._task, completed=step, description=description)

  def task(self, description: str, total: int):
    from rich import console, progress

    bar = progress.Progress(
      progress.TextColumn('{task.description}', markup=False),
      progress.BarColumn(bar_width=None),
      progress.TaskProgressColumn(),
      console=console.Console(file=self._stream),
      expand=True,
    )
    task = bar.add_task(description, total=total)
    bar.start()

    def advance(n):
      bar.update(task, advance=n)
      if bar.finished:
        bar.stop()

    return advance

  def message(self, text: str):
    if self._progress is None:
      super().message(text)
    else:
      self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)

  def close(self):
    if self._progress is not None:
      self._progress.stop()
      self._progress = None


class TimeLeft:
  """Estimates the time left from the steps since the first call, so that compilation does not count."""

  def __init__(self, total: int, clock=time.monotonic):
    self._total = total
    self._clock = clock
    self._first = None

  def __call__(self, step: int) -> str:
    """The estimate as h:mm:ss or m:ss; '' before the second call."""
    now = self._clock()
    if self._first is None:
      self._first = step, now
    first_step, first_time = self._first
    if step == first_step:
      return ''
    return clock_time((self._total - step) * (now - first_time) / (step - first_step))


def clock_time(seconds: float) -> str:
  """Seconds as m:ss, or h:mm:ss from an hour on."""
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02}:{seconds:02}' if hours else f'{minutes}:{seconds:02}'


def describe_training(metrics: dict) -> str:
  """Loss, tokens/s and, if there were any, bad steps."""
  parts = []
  if 'loss' in metrics:
    parts.append(f'loss {metrics["loss"]:.4f}')
  if 'tokens_per_second' in metrics:
    parts.append(f'{metrics["tokens_per_second"]:,.0f} tokens/s')
  if metrics.get('bad_steps'):
    parts.append(f'{metrics["bad_steps"]:.0f} bad steps')
  return '  '.join(parts)


def describe_evaluation(step: int, metrics: dict) -> str:
  """The evaluation's metrics in one line, in the order given."""
  shown = lambda value: f'{value:,}' if isinstance(value, int) else f'{value:,.4f}'
  return f'step {step:,} validation  ' + '  '.join(
    f'{name.removeprefix("eval/").replace("_", " ")} {shown(value)}' for name, value in metrics.items()
  )
