"""How fast batches come: tokens/s of the input pipeline, against what training consumes.

    python -m benchmarks.input_pipeline [--config=configs/quickstart.py] [--training_tokens_per_second=20000]

Prints a table and writes benchmarks/results/input_pipeline.json. The corpus is prepared twice in a cache of its own:
cold, and with everything cached. Then batches are taken as fast as they come, while nothing else runs.
"""

import argparse
import importlib
import json
import os
import pathlib
import platform
import sys
import tempfile
import time

import data

RESULTS = pathlib.Path(__file__).parent / 'results' / 'input_pipeline.json'
TARGET_RATIO = 20
MIXTURE = ({'corpus': 'python-docs', 'weight': 51}, {'corpus': 'python-sources', 'weight': 49})


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--config', default='configs/quickstart.py', help='whose data group is measured')
  parser.add_argument('--seconds', type=float, default=3.0, help='of each measurement')
  parser.add_argument('--training_tokens_per_second', type=float, default=20000.0, help='what training consumes')
  args = parser.parse_args()
  data_config = importlib.import_module(args.config.removesuffix('.py').replace('/', '.')).get_config().data
  results = {'config': args.config, 'python': platform.python_version(), 'cores': len(os.sched_getaffinity(0))}
  with tempfile.TemporaryDirectory(prefix='meshlm-benchmark-') as cache:
    data_config.cache_dir = cache
    results['prepare_seconds'], _ = _timed_prepare(data_config)
    results['prepare_cached_seconds'], dataset = _timed_prepare(data_config)
    results['corpus'] = dataset.report
    results['pipelines'] = {'documents': _measure(dataset, data_config, args)}
    data_config.packing = 'none'
    results['pipelines']['none'] = _measure(_timed_prepare(data_config)[1], data_config, args)
    data_config.packing, data_config.corpus, data_config.mixture = 'documents', 'mixture', MIXTURE
    results['pipelines']['mixture'] = _measure(_timed_prepare(data_config)[1], data_config, args)
  _print(results)
  RESULTS.parent.mkdir(exist_ok=True)
  RESULTS.write_text(json.dumps(results, indent=2) + '\n')
  slowest = min(result['times_training'] for result in results['pipelines'].values())
  sys.exit(f'slower than {TARGET_RATIO} times what training consumes' if slowest < TARGET_RATIO else 0)


def _timed_prepare(data_config):
  start = time.perf_counter()
  dataset = data.prepare(data_config, data_config.sequence_length + 1, seed=0)
  return time.perf_counter() - start, dataset


def _measure(dataset, data_config, args):
  rows = data_config.batch_tokens // data_config.sequence_length
  batches = data.train_batches(dataset, rows, seed=0)
  for _ in range(20):
    next(batches)
  count, start, cpu_start = 0, time.perf_counter(), time.process_time()
  while time.perf_counter() < start + args.seconds:
    next(batches)
    count += 1
  seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
  batches.close()
  tokens = count * rows * data_config.sequence_length
  return {
    'tokens_per_second': tokens / seconds,
    'times_training': tokens / seconds / args.training_tokens_per_second,
    'core_microseconds_per_batch': cpu_seconds / count * 1e6,
    'slots_used': dataset.report['slots_used'],
  }


def _print(results):
  print(
    f'{results["config"]}: prepared in {results["prepare_seconds"]:.1f} s, again in '
    f'{results["prepare_cached_seconds"]:.1f} s from the cache'
  )
  print(f'{"packing":<12}{"tokens/s":>14}{"x training":>12}{"core us/batch":>15}{"slots used":>12}')
  for name, result in results['pipelines'].items():
    print(
      f'{name:<12}{result["tokens_per_second"]:>14,.0f}{result["times_training"]:>12.0f}'
      f'{result["core_microseconds_per_batch"]:>15.0f}{result["slots_used"]:>12.2%}'
    )


if __name__ == '__main__':
  main()
