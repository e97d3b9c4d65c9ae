"""What the benchmarks of single operations on a CPU share: compiled programs taking turns, and their table."""

import os
import sys
import time

import jax
import numpy as np

from benchmarks import common


def large_pages():
  """Starts this process again with large pages for malloc, as train.py does, unless it has them."""
  if os.environ.get('GLIBC_TUNABLES') != common.ENVIRONMENT['GLIBC_TUNABLES']:
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], common.ENVIRONMENT)


def interleave(programs: dict, inputs: tuple, seconds: float) -> dict:
  """Runs compiled programs in turn for some seconds, each first once without measuring.

  So what another program left behind does not count: gigabytes still being given back to the system, foreign caches.

  Returns:
    For each: `ms` (median wall time), `cpu_ms` (smallest processor time, which other processes disturb least) and
    `temporaries_mib`.
  """
  wall, processor = {name: [] for name in programs}, {name: [] for name in programs}
  end, rounds = time.perf_counter() + seconds, 0
  while time.perf_counter() < end or rounds < 3:
    rounds += 1
    for name, program in programs.items():
      jax.block_until_ready(program(*inputs))
      started = time.perf_counter(), time.process_time()
      jax.block_until_ready(program(*inputs))
      wall[name].append(1e3 * (time.perf_counter() - started[0]))
      processor[name].append(1e3 * (time.process_time() - started[1]))
  return {
    name: {
      'ms': float(np.median(wall[name])),
      'cpu_ms': min(processor[name]),
      'temporaries_mib': program.memory_analysis().temp_size_in_bytes / 2**20,
    }
    for name, program in programs.items()
  }


def write(name: str, shapes: dict, results: dict, ours: str, baseline: str) -> None:
  """Writes what `interleave` gave for each case, with the ratios of `baseline` to `ours`, and prints the table."""
  programs = list(next(iter(results.values())))
  rows = [
    [
      case,
      *(cells[x]['ms'] for x in programs),
      cells[baseline]['ms'] / cells[ours]['ms'],
      cells[baseline]['cpu_ms'] / cells[ours]['cpu_ms'],
      *(cells[x]['temporaries_mib'] for x in programs),
    ]
    for case, cells in results.items()
  ]
  headers = [
    'case',
    *(f'{x} ms' for x in programs),
    f'{baseline} / {ours}',
    'the same in CPU time',
    *(f'{x} MiB' for x in programs),
  ]
  common.write(
    name, {'shapes': shapes, 'results': results}, common.markdown_table(headers, rows), f'python -m benchmarks.{name}'
  )
