"""The worker of train_gpu, which has the GPU: builds, compiles and runs a case's training step."""

import argparse
import logging
import os
import statistics
import time

# The largest case needs nearly all memory; before jax is imported.
os.environ.setdefault('XLA_PYTHON_CLIENT_MEM_FRACTION', '0.97')

import jax
import numpy as np

from benchmarks import gpu, gpu_worker, train_gpu_cases
from training import counting, hardware, program

_MAX_STEPS = 200


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  gpu.add_arguments(parser)
  arguments = parser.parse_args()
  gpu.choose_platform(arguments)

  def describe(request, say):
    yield {**hardware.describe(), **gpu.describe()}

  def train(request, say):
    case = train_gpu_cases.Case(**request['case'])
    say('building')
    yield run(case, request['dry_run'], request['seconds'], say)

  gpu_worker.serve({'describe': describe, 'train': train})


def run(case, dry_run: bool, seconds: float, say) -> dict:
  """The record of a case: what was compiled, tokens/s, MFU, memory, losses; `error` where it cannot run."""
  record = {}
  try:
    with attention_choices() as choices:
      built = program.build(train_gpu_cases.config(case, dry_run))
      say('compiling')
      start = time.perf_counter()
      compiled = built.step.lower(built.abstract_state, train_gpu_cases.batch_shape(case)).compile()
    record |= {
      'parameters': built.model.num_params,
      'compile_seconds': time.perf_counter() - start,
      'attention': choices,
      'mosaic_kernels': mosaic_kernels(compiled),
      'memory': memory(compiled),
    }
    if reason := too_large(record['memory'], _memory_stats().get('bytes_limit')):
      return record | {'error': reason}
    say('initialising')
    record |= _measure(case, built, compiled, seconds, say)
    record |= utilisation(case, built.model, record['tokens_per_second'])
  except Exception as error:  # out of memory, above all
    record['error'] = gpu.words(error)
  return record


def _measure(case, built, compiled, seconds, say):
  state = jax.block_until_ready(built.init())
  sharding = jax.tree.leaves(built.abstract_state)[0].sharding
  vocab_size = built.model.config.vocab_size
  batches = [jax.device_put(batch, sharding) for batch in train_gpu_cases.batches(case, vocab_size)]
  ends, losses, previous = [], [], None
  say('training')
  for n in range(_MAX_STEPS):
    state, metrics = compiled(state, batches[n % len(batches)])
    if previous is not None:  # a step's metrics are read while the next one runs, as in the training loop
      losses.append(previous['loss'].value)
      ends.append(time.perf_counter())
    previous = metrics
    if len(ends) > 8 and ends[-1] - ends[3] > seconds:
      break
  jax.block_until_ready(state)
  steps = np.diff(ends)[2:]  # the first ones warm up
  tokens = case.rows * case.length
  return {
    'steps': len(steps),
    'step_ms': 1e3 * statistics.median(steps),
    'step_ms_range': [1e3 * min(steps), 1e3 * max(steps)],
    'tokens_per_second': tokens / statistics.median(steps),
    'loss_first': losses[0],
    'loss_last': losses[-1],
    'peak_bytes': _memory_stats().get('peak_bytes_in_use'),
  }


def utilisation(case, model, tokens_per_second: float) -> dict:
  """MFU against the published dense bfloat16 peak of the device.

  `mfu` counts as scaling/flops.py does (PaLM, appendix B): 6 a matmul weight and attention in full, recomputation and
  the embedding look-up not at all. `mfu_all_parameters` takes 6 for every parameter, the look-up table included, as
  KempnerForge and others do.
  """
  peak = hardware.peak_flops(jax.local_devices()[:1], 'bfloat16')
  model_config = model.config
  attention = 12 * model_config.num_layers * model_config.num_heads * model_config.head_dim * case.length
  per_token = {
    'mfu': counting.flops_per_token(model, case.length),
    'mfu_all_parameters': 6 * model.num_params + attention,
  }
  return {name: tokens_per_second * flops / peak if peak else None for name, flops in per_token.items()}


class attention_choices:
  """Context that collects in a list what 'auto' says it chose for attention while programs are traced."""

  def __enter__(self):
    self._logger, found = logging.getLogger('pallas_kernels.attention'), []
    self._handler, self._level = logging.Handler(), self._logger.level
    self._handler.emit = lambda record: found.append(record.getMessage())
    self._logger.addHandler(self._handler)
    self._logger.setLevel(logging.INFO)
    return found

  def __exit__(self, *_):
    self._logger.removeHandler(self._handler)
    self._logger.setLevel(self._level)


def mosaic_kernels(compiled) -> int:
  """How many Mosaic kernels the program calls, those of a scanned layer once."""
  return compiled.as_text().count('custom_call_target="mosaic_gpu')


def memory(compiled) -> dict:
  """Bytes the compiler plans: arguments, which are donated, temporaries, and all that is there at once."""
  analysis = compiled.memory_analysis()
  new = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
  return {
    'argument_bytes': analysis.argument_size_in_bytes,
    'temporary_bytes': analysis.temp_size_in_bytes,
    'planned_bytes': analysis.argument_size_in_bytes + analysis.temp_size_in_bytes + new,
  }


def too_large(planned: dict, limit: int | None) -> str:
  """Says so in words where what `memory` tells does not fit in `limit` bytes of a device; else ''."""
  if limit is None or planned['planned_bytes'] <= limit:
    return ''
  needed, given = planned['planned_bytes'] / 2**30, limit / 2**30
  return f'not run: the compiler plans {needed:.1f} GiB, and JAX may use {given:.1f} GiB of this device'


def _memory_stats():
  return jax.local_devices()[0].memory_stats() or {}


if __name__ == '__main__':
  main()
