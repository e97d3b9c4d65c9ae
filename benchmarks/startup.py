"""Seconds from the start of `train.py` on the quickstart to its first training step, cold and with warm caches.

  python -m benchmarks.startup [--config=configs/quickstart.py] [--warm_runs=3]

Cold: nothing is cached; the text is collected, the tokenizer trained, the step compiled. Warm: a new run of the same.
"""

import argparse
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from benchmarks import common


def seconds_to_first_step(config: str, workdir: pathlib.Path, cache: pathlib.Path) -> float:
  """Starts a run, waits until it has written the metrics of step 1, and ends it."""
  command = [sys.executable, 'train.py', f'--config={config}', f'--workdir={workdir}']
  metrics = workdir / 'metrics.jsonl'
  start = time.perf_counter()
  process = subprocess.Popen(
    command, cwd=common.ROOT, env=common.ENVIRONMENT | {'XDG_CACHE_HOME': str(cache)}, stdout=subprocess.DEVNULL
  )
  try:
    while not (metrics.exists() and metrics.stat().st_size):
      if process.poll() is not None:
        raise RuntimeError(f'{" ".join(command)} ended with status {process.returncode} before its first step')
      time.sleep(0.01)
    return time.perf_counter() - start
  finally:
    process.kill()
    process.wait()


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--config', default='configs/quickstart.py')
  parser.add_argument('--warm_runs', type=int, default=3)
  arguments = parser.parse_args()
  common.warn_if_busy()
  with tempfile.TemporaryDirectory(prefix='meshlm-startup-') as folder:
    folder = pathlib.Path(folder)
    cold, *warm = (
      seconds_to_first_step(arguments.config, folder / f'run{i}', folder / 'cache')
      for i in range(1 + arguments.warm_runs)
    )
  results = {
    'config': arguments.config,
    'cold_seconds': cold,
    'warm_seconds': statistics.median(warm),
    'warm_seconds_each': warm,
  }
  table = common.markdown_table(
    ['caches', 'seconds to the first training step'], [['cold', cold], ['warm', results['warm_seconds']]]
  )
  common.write('startup', results, table, f'python -m benchmarks.startup --config={arguments.config}')


if __name__ == '__main__':
  main()
