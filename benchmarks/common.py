"""What the benchmarks share: records with the machine they were made on, tables, and worker processes."""

import json
import os
import pathlib
import subprocess
import sys

from training import hardware, heap

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = ROOT / 'benchmarks/results'
# How malloc holds memory: as train.py holds it; or, for other programs, large pages, or also one heap that keeps
# what is freed. Without it large blocks go back to the system and are faulted in again at each step, at a price that
# varies between machines and hours, above all on virtual ones; with it memory grows and threads share a lock.
MEMORY = {
  'train.py': heap.TUNABLES['GLIBC_TUNABLES'],
  'large-pages': 'glibc.malloc.hugetlb=1',
  'kept-heap': (
    'glibc.malloc.hugetlb=1:glibc.malloc.arena_max=1:glibc.malloc.mmap_threshold=17179869184:'
    'glibc.malloc.trim_threshold=17179869184'
  ),
}
ENVIRONMENT = os.environ | {'GLIBC_TUNABLES': MEMORY['large-pages']}


def write(name: str, results: dict, table: str, command: str) -> None:
  """Writes results/NAME.json and .md and prints the table.

  Args:
    name: of the benchmark.
    results: JSON-able; the machine, versions and date are added under `machine`.
    table: markdown.
    command: what makes these results again.
  """
  save(RESULTS, name, {'command': command, 'machine': hardware.describe(), **results}, table)
  print(table)


def save(folder: pathlib.Path, name: str, record: dict, table: str) -> None:
  """Writes FOLDER/NAME.json and .md; a process that is ended meanwhile leaves the earlier files.

  Args:
    folder: made where it is missing.
    name: of the benchmark.
    record: JSON-able, with `command` and `machine`.
    table: markdown.
  """
  folder.mkdir(parents=True, exist_ok=True)
  about = ', '.join(f'{key} {value}' for key, value in record['machine'].items())
  texts = {
    'json': json.dumps(record, indent=2) + '\n',
    'md': f'# {name}\n\n`{record["command"]}`\n\n{table}\n\n{about}\n',
  }
  for suffix, text in texts.items():
    temporary = folder / f'{name}.{suffix}.tmp'
    temporary.write_text(text)
    temporary.replace(folder / f'{name}.{suffix}')


def markdown_table(headers: list[str], rows: list[list]) -> str:
  """A table; floats are shown with three significant digits or as whole numbers."""
  lines = [headers, ['---'] * len(headers), *([_cell(value) for value in row] for row in rows)]
  return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def _cell(value) -> str:
  if isinstance(value, float):
    return f'{value:,.0f}' if abs(value) >= 100 else f'{value:.3g}'
  return str(value)


def warn_if_busy() -> None:
  """Says so when other processes are running: PyTorch in particular collapses on shared cores."""
  if (load := os.getloadavg()[0]) > 0.5:
    print(f'Warning: the load of this machine is {load:.1f}; figures count only when it is quiet.', file=sys.stderr)


def add_torch_python(parser) -> None:
  """Adds --torch-python, by default $MESHLM_TORCH_PYTHON."""
  parser.add_argument(
    '--torch-python',
    default=os.environ.get('MESHLM_TORCH_PYTHON'),
    help='interpreter that has PyTorch; default: $MESHLM_TORCH_PYTHON',
  )


def require_torch_python(parser, given: str | None) -> str:
  """The interpreter for the PyTorch baselines; ends the program in words when there is none with PyTorch."""
  if not given:
    parser.error('the baseline needs PyTorch: --torch-python=PATH or MESHLM_TORCH_PYTHON=PATH, a Python that has it')
  if subprocess.run([given, '-c', 'import torch'], capture_output=True).returncode:
    parser.error(f'{given} has no PyTorch; name another interpreter with --torch-python, or install torch there')
  return given


class Worker:
  """A process that answers JSON lines; it waits without using a core while nobody asks."""

  def __init__(self, *command: str, memory: str = 'large-pages'):
    self._process = subprocess.Popen(
      command,
      cwd=ROOT,
      env=ENVIRONMENT | {'GLIBC_TUNABLES': MEMORY[memory]},
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    self._command = command
    self.ready = self._answer()

  def ask(self, **request) -> dict:
    self._process.stdin.write(json.dumps(request) + '\n')
    self._process.stdin.flush()
    return self._answer()

  def close(self) -> None:
    self._process.stdin.close()
    self._process.wait()

  def _answer(self) -> dict:
    line = self._process.stdout.readline()
    if not line:
      raise RuntimeError(f'the worker {" ".join(self._command)} ended with status {self._process.wait()}')
    return json.loads(line)
