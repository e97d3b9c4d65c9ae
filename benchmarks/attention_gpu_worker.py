"""The worker of attention_gpu, which has the GPU: compares and times what it is asked for."""

import argparse
import concurrent.futures
import os
import statistics

# PyTorch needs memory in the same process; before jax is imported.
os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')

from benchmarks import gpu, gpu_contestants, gpu_numerics, gpu_worker
from training import hardware


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  gpu.add_arguments(parser)
  arguments = parser.parse_args()
  gpu.choose_platform(arguments)
  gpu_worker.serve(handlers(arguments.dry_run))


def handlers(dry_run: bool) -> dict:
  """What this worker does, by the kind of a request; see `gpu_worker.serve`."""
  ours = gpu_contestants.ours(dry_run)
  all_cells = {cell.name: cell for cell in gpu_contestants.cells(dry_run)}
  cases = {case.name: case for case in gpu_numerics.CASES}

  def describe(request, say):
    yield {**hardware.describe(), **gpu.describe(), **_torch_versions()}

  def numerics(request, say):
    prepared = {}
    for name in request['items']:
      say(f'tracing {name}')
      prepared[name] = _attempt(gpu_numerics.prepare, cases[name], ours)
    say('compiling the numerics')
    for name, check in _finish_all(prepared).items():
      say(name)
      record = check if isinstance(check, Exception) else _attempt(check)
      gpu_worker.die_if_broken()
      yield {'passed': False, 'error': gpu.words(record)} if isinstance(record, Exception) else record

  def ceiling(request, say):
    say('the matmul ceiling')
    yield gpu.matmul_flops(*((256, 0.1) if dry_run else ()))

  def timing(request, say):
    chosen = [all_cells[name] for name in request['items']]
    entrants, without = gpu_contestants.contestants(ours), set(map(tuple, request['without']))
    prepared = {}
    for cell in chosen:
      for name, entrant in entrants.items():
        if (cell.name, name) not in without:
          for which in gpu_contestants.PASSES:
            say(f'{name} in {cell.name}')
            prepared[cell, name, which] = _attempt(entrant.prepare, cell, which)
    say('compiling')
    programs = _finish_all(prepared)
    for cell in chosen:
      of_cell = {key[1:]: program for key, program in programs.items() if key[0] == cell}
      yield _time(cell, entrants, of_cell, request['seconds'], say)

  return {'describe': describe, 'numerics': numerics, 'ceiling': ceiling, 'timing': timing}


def _finish_all(prepared: dict) -> dict:
  """Calls each `finish` in a thread, compilers being outside Python; errors take the place of results."""
  def finish(item):
    try:
      return item() if callable(item) else item
    except Exception as error:
      return error

  with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
    return dict(zip(prepared, pool.map(finish, prepared.values()), strict=True))


def _attempt(function, *args):
  try:
    return function(*args)
  except Exception as error:
    return error


def _torch_versions():
  try:
    import torch
    return {'torch': torch.__version__, 'torch cuda': torch.version.cuda, 'cudnn': torch.backends.cudnn.version()}
  except ImportError:
    return {}


def _time(cell, entrants, programs, seconds, say):
  """Each contestant's TFLOP/s by direction, or why there are none."""
  results, running, wait = {name: {} for name in entrants}, {}, {}
  for (name, which), run in programs.items():
    say(f'{name} in {cell.name}')
    error = run if isinstance(run, Exception) else _attempt(lambda run=run, name=name: entrants[name].wait(run(0)))
    if isinstance(error, Exception):
      gpu_worker.die_if_broken()
      results[name]['forward' if which == 'forward' else 'backward'] = {'error': gpu.words(error)}
    else:
      running[name, which], wait[name, which] = run, entrants[name].wait
  say('taking turns')
  if not running:
    return results
  times = gpu.interleave(running, wait, seconds)
  for name, which in times:
    forward = times.get((name, 'forward'))
    if which == 'forward':
      results[name]['forward'] = _figures(cell, 'forward', forward)
    elif forward is not None:
      results[name]['backward'] = _figures(
        cell, 'backward', [both - one for both, one in zip(times[name, 'both'], forward, strict=True)])
  return results


def _figures(cell, direction, seconds):
  # On a CPU noise can exceed the difference of two passes.
  middle = max(statistics.median(seconds), 1e-9)
  return {'ms': 1e3 * middle, 'ms_range': [1e3 * min(seconds), 1e3 * max(seconds)], 'rounds': len(seconds),
          'tflops': cell.flops(direction) / middle / 1e12}


if __name__ == '__main__':
  main()
