"""The worker of attention_gpu, which has the GPU: compares and times what it is asked for."""

import argparse
import concurrent.futures
import functools
import os
import statistics

# PyTorch needs memory in the same process; before jax is imported.
os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')

import jax
import jax.numpy as jnp

from benchmarks import gpu, gpu_checks, gpu_contestants, gpu_numerics, gpu_worker
from training import hardware

_HANG = 25  # seconds in which a compiled program must have run, and the few times that tell whether it is right
_FAR = 0.015  # from float32, ||got - want|| / ||want||, that is right for a timed result: it is rounded to 16 bits


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
  cases, repeats = gpu_numerics.items(dry_run), 2 if dry_run else gpu_checks.REPEATS

  def describe(request, say):
    yield {**hardware.describe(), **gpu.describe(), **_torch_versions()}

  def numerics(request, say):
    prepared = {}
    for name in request['items']:
      say(f'tracing {name}')
      prepared[name] = _attempt(gpu_numerics.prepare, name, *cases[name], ours)
    say('compiling the numerics')
    for check in _finish_all(prepared).values():
      record = check if isinstance(check, Exception) else _attempt(check, say, repeats, _HANG)
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
        for which in entrant.passes:
          if (cell.name, name, which) not in without:
            say(gpu_contestants.program_name(name, which, cell.name))
            prepared[cell, name, which] = _attempt(entrant.prepare, cell, which)
    say('compiling')
    programs = _finish_all(prepared)
    for cell in chosen:
      of_cell = {key[1:]: program for key, program in programs.items() if key[0] == cell}
      yield _time(cell, entrants, of_cell, request['seconds'], repeats, say)

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


def _time(cell, entrants, programs, seconds, repeats, say):
  """Each contestant's TFLOP/s by direction, or why there are none."""
  results, running, wait = {name: {} for name in entrants}, {}, {}
  expected = functools.cache(functools.partial(_definition, cell, say))
  for (name, which), run in programs.items():
    check = functools.partial(_faults, entrants[name], name, which, cell, run, repeats, expected, say)
    found = run if isinstance(run, Exception) else _attempt(check)
    direction = 'forward' if which == 'forward' else 'backward'
    if isinstance(found, Exception):
      gpu_worker.die_if_broken()
      results[name][direction] = {'error': gpu.words(found)}
    elif found:
      results[name][direction] = {'wrong': found}
    else:
      running[name, which], wait[name, which] = run, entrants[name].wait
  say('taking turns')
  if not running:
    return results
  times = gpu.interleave(running, wait, seconds)
  for name, which in times:
    forward = times.get((entrants[name].forward or name, 'forward'))
    if which == 'forward':
      results[name]['forward'] = _figures(cell, 'forward', forward)
    elif forward is not None:
      results[name]['backward'] = _figures(
        cell, 'backward', [both - one for both, one in zip(times[name, 'both'], forward, strict=True)]
      )
  return results


def _definition(cell, say, dtype, scale):
  say(f'the definition of {cell.name}')
  inputs = gpu_contestants.inputs(cell.shapes(), dtype)[0]
  return jax.block_until_ready(gpu_checks.definition(*inputs, causal=cell.causal, scale=scale))


def _faults(entrant, name, which, cell, run, repeats, expected, say):
  """What is wrong with the results of a program, which runs here for the first time."""
  if entrant.dtype is None:
    say(gpu_contestants.program_name(name, which, cell.name), _HANG)
    entrant.wait(run(0))
    return []
  want = expected(entrant.dtype, entrant.scale)
  say(gpu_contestants.program_name(name, which, cell.name), _HANG)
  again = lambda: gpu_checks.named(jax.block_until_ready(run(0)))
  first = again()
  moved = gpu_checks.moved(again, first, repeats) if entrant.ours else {}
  fused = entrant.forward is None and gpu_contestants.fused(cell)
  may_move = {'gradient of q': gpu_checks.MAY_MOVE[jnp.dtype(entrant.dtype).name]} if fused else {}
  return gpu_checks.faults(gpu_checks.distances(first, want), dict.fromkeys(first, _FAR), moved, may_move)


def _figures(cell, direction, seconds):
  # On a CPU noise can exceed the difference of two passes.
  middle = max(statistics.median(seconds), 1e-9)
  return {
    'ms': 1e3 * middle,
    'ms_range': [1e3 * min(seconds), 1e3 * max(seconds)],
    'rounds': len(seconds),
    'tflops': cell.flops(direction) / middle / 1e12,
  }


if __name__ == '__main__':
  main()
