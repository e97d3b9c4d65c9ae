"""Writers of a run's numbers: metrics.jsonl, TensorBoard events and summary.json."""

import json
import math
import os
import pathlib


class MetricsWriter:
  """Appends to `metrics.jsonl`, and to `tensorboard/` if asked.

  A line is one JSON object with `step` first; a number that is NaN or infinite is written as null, since JSON has
  neither. Each line reaches the operating system before `write` returns, so a killed process loses none.

  A run that resumes drops the lines after the restored step, and TensorBoard is told to forget those events: the
  file then goes on as if the run had never stopped. For that, everything up to a step is to be written before the
  checkpoint of that step is saved.

  Args:
    workdir: run directory; made if absent.
    start_step: step the run starts from; 0 = from the beginning, which drops every line.
    tensorboard: whether to write events too.
  """

  def __init__(self, workdir, start_step: int = 0, tensorboard: bool = True):
    workdir = pathlib.Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / 'metrics.jsonl'
    _keep_until(path, start_step)
    self._file = path.open('a', buffering=1, encoding='utf-8')
    self._events = _events(workdir / 'tensorboard', start_step) if tensorboard else None

  def write(self, step: int, metrics: dict):
    """Writes one line. Values are int, float, or 0-d arrays, which are waited for."""
    numbers = {name: _number(value) for name, value in metrics.items()}
    self._file.write(_dumps({'step': int(step), **numbers}) + '\n')
    if self._events:
      for name, value in numbers.items():
        self._events.add_scalar(name, value, int(step))

  def close(self):
    """Closes the files."""
    self._file.close()
    if self._events:
      self._events.close()

  def __enter__(self):
    return self

  def __exit__(self, *exception):
    self.close()


class NoMetrics:
  """In the place of a `MetricsWriter`, in all processes but the first."""

  def write(self, step: int, metrics: dict):
    """Writes nothing."""

  def __enter__(self):
    return self

  def __exit__(self, *exception):
    pass


def read_metrics(workdir) -> list[dict]:
  """The objects of `metrics.jsonl` in order, null as NaN; a last line cut by a crash is left out; [] if absent."""
  path = pathlib.Path(workdir) / 'metrics.jsonl'
  if not path.exists():
    return []
  lines = [_parse(line) for line in path.read_text(encoding='utf-8').splitlines()]
  return [{name: math.nan if value is None else value for name, value in line.items()} for line in lines if line]


def write_summary(workdir, summary: dict):
  """Writes `summary.json`, whole or not at all; NaN and infinities become null."""
  path = pathlib.Path(workdir) / 'summary.json'
  _replace(path, _dumps({name: _number(value) for name, value in summary.items()}, indent=2) + '\n')


def _keep_until(path, step):
  if not path.exists():
    return
  lines = path.read_text(encoding='utf-8').splitlines(keepends=True) if step else []
  kept = [line for line in lines if (parsed := _parse(line)) and parsed['step'] <= step]
  _replace(path, ''.join(kept))


def _parse(line):
  try:
    return json.loads(line)
  except ValueError:  # the process was killed while it wrote this line
    return None


def _replace(path, text):
  temporary = path.with_name(f'{path.name}.tmp')
  temporary.write_text(text, encoding='utf-8')
  os.replace(temporary, path)


def _events(directory, start_step):
  import tensorboardX

  # purge_step hides what an earlier process wrote for the steps that are now repeated. Names end in the step because
  # two processes started within one second would otherwise write the same file.
  return tensorboardX.SummaryWriter(
    str(directory), purge_step=start_step + 1 if start_step else 0, filename_suffix=f'.{start_step}'
  )


def _number(value):
  return value.item() if hasattr(value, 'item') else value


def _dumps(numbers, indent=None):
  finite = {
    name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in numbers.items()
  }
  return json.dumps(finite, indent=indent, allow_nan=False)
