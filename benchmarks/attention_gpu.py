"""Attention on one H200: the Hopper kernels against their definition, then against cuDNN, PyTorch and other kernels.

  python -m benchmarks.attention_gpu [--minutes=7.5] [--out=DIR]
  python -m benchmarks.attention_gpu --dry_run --out=DIR        the whole script on the CPU, tiny; times mean nothing
  python -m benchmarks.attention_gpu --compile_only [--cells=N] registers and spills of our kernels, without a GPU

Before a program is timed its result is compared with float32, ours also with that of 20 more calls, which must be the
same bit for bit but for the gradient of q where one kernel gives all; a wrong one has no figure. PyTorch's results are
not compared.

Writes attention_gpu.{json,md,png}, again after every cell. Exit status 1 where a result is wrong. Needs jax and
matplotlib; PyTorch and tokamax take part where they are installed. Backward is forward and backward less forward.
"""

import argparse
import dataclasses
import sys
import time

import jax
import jax.numpy as jnp

from benchmarks import attention_gpu_report, gpu, gpu_contestants, gpu_numerics, gpu_worker
from pallas_kernels import target

_BATCH = 3  # cells whose programs are compiled at once, on all cores
_SILENCE = 100  # seconds without a word from the worker that mean it hangs; compiling a batch must fit
_NUMERICS_SHARE = 0.35  # of the time, at most


class Benchmark:
  """Asks a worker, which may die, keeps to the time and writes."""

  def __init__(self, arguments):
    self._started, self._seconds, self._out = time.perf_counter(), 60 * arguments.minutes, arguments.out
    flags = ['--dry_run'] if arguments.dry_run else []
    self._worker = gpu_worker.Worker(sys.executable, '-m', 'benchmarks.attention_gpu_worker', *flags)
    self._cells = {cell.name: cell for cell in gpu_contestants.cells(arguments.dry_run)[: arguments.cells]}
    self._entrants = list(gpu_contestants.contestants(gpu_contestants.ours(arguments.dry_run)))
    self._cases = list(gpu_numerics.items(arguments.dry_run))
    self._deaths = []  # cell, contestant and pass
    self._dry_run = arguments.dry_run
    self._results = {
      'numerics': {},
      'matmul_tflops': None,
      'cells': {},
      'deaths': [],
      'not_measured': list(self._cells),
    }
    (machine,) = self._worker.stream('describe', _SILENCE)
    print('\n'.join(f'{key}: {value}' for key, value in machine.items()), flush=True)
    command = f'python -m benchmarks.attention_gpu --minutes={arguments.minutes:g} {" ".join(flags)}'.strip()
    self._record = gpu.Record('attention_gpu', command, arguments.out, machine)

  def run(self) -> bool:
    """Whether all results were right."""
    try:
      self._numerics()
      self._ceiling()
      self._timing()
    finally:
      self._worker.kill()
      self._write()
    attention_gpu_report.plot(self._results, self._entrants, self._out / 'attention_gpu.png')
    print(attention_gpu_report.table(self._results, self._entrants), flush=True)
    wrong = any(
      'wrong' in record
      for cell in self._results['cells'].values()
      for name in ('ours', 'ours, unfused')
      for record in cell['contestants'].get(name, {}).values()
    )
    return not wrong and all(record['passed'] for record in self._results['numerics'].values())

  def _numerics(self):
    records, names = self._results['numerics'], self._cases
    while missing := [name for name in names if name not in records]:
      if self._spent() > _NUMERICS_SHARE * self._seconds:
        records |= {name: {'passed': False, 'error': 'not run: no time was left for it'} for name in missing}
        break
      try:
        for record, name in zip(self._worker.stream('numerics', _SILENCE, items=missing), missing):
          records[name] = record
          print(attention_gpu_report.numerics_line(name, record), flush=True)
      except gpu_worker.Died as death:
        # It names the case it was at; compiling all of them names none, and then the first is taken for it.
        missing = [name for name in names if name not in records]
        culprit = next((name for name in missing if death.doing.endswith(name)), missing[0])
        records[culprit] = {'passed': False, 'error': gpu.words(death)}
        print(f'FAILS: {culprit}: {death}', flush=True)
      self._write()

  def _ceiling(self):
    try:
      (flops,) = self._worker.stream('ceiling', _SILENCE)
      self._results['matmul_tflops'] = flops / 1e12
      print(f'matmul ceiling: {flops / 1e12:.0f} TFLOP/s', flush=True)
    except gpu_worker.Died as death:
      print(f'no matmul ceiling: {death}', flush=True)

  def _timing(self):
    missing, batch_seconds = self._results['not_measured'], 0.0
    while missing and self._spent() + batch_seconds < self._seconds:
      start, batch = time.perf_counter(), missing[:_BATCH]
      # What is left, shared out, less what compiling takes, which is about as long.
      seconds = 0.1 if self._dry_run else min(4.0, max(0.5, 0.5 * (self._seconds - self._spent()) / len(missing)))
      try:
        results = self._worker.stream('timing', _SILENCE, items=batch, seconds=seconds, without=self._without())
        for contestants, name in zip(results, batch):
          self._add(name, contestants)
      except gpu_worker.Died as death:
        self._blame(death, next(name for name in batch if name in missing))
      batch_seconds = time.perf_counter() - start

  def _add(self, name, contestants):
    cell = self._cells[name]
    self._results['cells'][name] = {'name': name, **dataclasses.asdict(cell), 'contestants': contestants}
    self._results['not_measured'].remove(name)
    self._write()
    speeds = {
      entrant: [record.get('tflops') for record in directions.values()] for entrant, directions in contestants.items()
    }
    print(
      f'{self._spent():.0f} s: {name}: '
      + ', '.join(
        f'{entrant} {"/".join("-" if x is None else f"{x:.3g}" for x in both)}' for entrant, both in speeds.items()
      ),
      flush=True,
    )

  def _blame(self, death, name):
    """Leaves the program that hung or crashed out of the cell, after twice out of all; else gives up the cell."""
    print(f'{name}: {death}', flush=True)
    self._results['deaths'].append(str(death))
    found = [
      (cell, entrant, which)
      for cell in self._cells
      for entrant in self._entrants
      for which in gpu_contestants.PASSES
      if death.doing == gpu_contestants.program_name(entrant, which, cell)
    ]
    if found:
      self._deaths += found
    else:
      self._add(name, {entrant: {'forward': {'error': gpu.words(death)}} for entrant in self._entrants})

  def _without(self):
    dead = [program for _, *program in self._deaths]
    out = [program for program in dead if dead.count(program) > 1]
    return self._deaths + [(cell, *program) for cell in self._cells for program in out]

  def _write(self):
    self._record.write(self._results, attention_gpu_report.table(self._results, self._entrants))

  def _spent(self):
    return time.perf_counter() - self._started


def compile_only(arguments) -> None:
  """Prints for our kernels in each cell what ptxas says and a bound on the time that no kernel can be under."""
  gpu.choose_platform(arguments)
  devices = gpu.topology(arguments.target_config)
  with gpu.ptxas_dumps() as dumps:
    for cell in gpu_contestants.cells(dry_run=False)[: arguments.cells]:
      structs = [gpu.struct(devices, shape, jnp.bfloat16) for shape in cell.shapes()]
      for which in gpu_contestants.PASSES:
        start = time.perf_counter()
        try:
          function = gpu_contestants.program(gpu_contestants.ours_on_hopper, cell, which)
          with target(gpu.H200):
            jax.jit(function, keep_unused=True).lower(*structs).compile()
          said = gpu.ptxas_line(gpu.ptxas_reports(dumps))
        except Exception as error:
          said = gpu.words(error)
        directions = attention_gpu_report.DIRECTIONS[: 1 if which == 'forward' else 2]
        bound = sum(
          max(cell.flops(direction) / gpu.REACHABLE_FLOPS, cell.bytes(direction) / gpu.REACHABLE_BYTES)
          for direction in directions
        )
        print(
          f'{cell.name}, {" and ".join(directions)}: {said}; at least {1e3 * bound:.3f} ms; '
          f'compiled in {time.perf_counter() - start:.1f} s',
          flush=True,
        )


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  gpu.add_arguments(parser)
  parser.add_argument('--minutes', type=float, default=7.5, help='after which no cell is begun')
  parser.add_argument('--cells', type=int, default=None, help='only so many, the most important ones')
  arguments = parser.parse_args()
  if arguments.compile_only:
    compile_only(arguments)
    return 0
  return 0 if Benchmark(arguments).run() else 1


if __name__ == '__main__':
  sys.exit(main())
