"""Training speed on one H200: GPT-2 124M, a Llama of 1B and the shape of Llama 3 8B, with this project's own step.

  python -m benchmarks.train_gpu [--minutes=6] [--out=DIR]
  python -m benchmarks.train_gpu --dry_run --out=DIR    the whole script on the CPU, tiny; times mean nothing
  python -m benchmarks.train_gpu --compile_only         memory, and registers and spills of kernels, without a GPU

Configs of configs/ on one device in bfloat16 (parameters, moments and gradients in float32), attention chosen by
'auto', random tokens as frequent as words are, each row one document. Writes train_gpu.{json,md}, again after every
case. Needs jax, flax and optax.
"""

import argparse
import dataclasses
import json
import sys
import time

from benchmarks import common, gpu, gpu_worker, train_gpu_cases
from pallas_kernels import target

_SILENCE = 150  # seconds without a word from the worker that mean it hangs; compiling a step must fit
_GIB = 2**30
_HEADERS = [
  'model',
  'rows x tokens',
  'remat',
  'optimizer',
  'tokens/s',
  'published',
  'ours / published',
  'MFU',
  'MFU, all parameters',
  'peak GiB',
  'compile s',
  'attention',
]


def table(results: dict) -> str:
  """Markdown, a row a case; why a case has no figures stands below."""
  rows, notes = [], []
  for name, record in results['cases'].items():
    case, speed = record['case'], record.get('tokens_per_second')
    peak = record.get('peak_bytes')
    rows.append(
      [
        name,
        f'{case["rows"]} x {case["length"]}',
        case['remat'],
        case['optimizer'],
        speed or 'not measured',
        f'{case["anchor"]:,.0f} ({case["anchor_source"]})' if case['anchor'] else '',
        speed / case['anchor'] if speed and case['anchor'] else '',
        *(f'{100 * record[key]:.1f}%' if record.get(key) else '' for key in ('mfu', 'mfu_all_parameters')),
        peak / _GIB if peak else '',
        record.get('compile_seconds', ''),
        f'{record.get("mosaic_kernels", "?")} Mosaic kernels',
      ]
    )
    notes += [f'* {name}: {failed}' for failed in record.get('failed', [])]
    if peak and not record.get('mosaic_kernels'):
      notes.append(f'* {name}: attention did not run in Hopper kernels: {"; ".join(record["attention"])}')
  return '\n\n'.join([common.markdown_table(_HEADERS, rows), *(['\n'.join(notes)] if notes else [])])


def measure(arguments) -> bool:
  """Runs all cases, each in a process of its own, and writes; whether all ran."""
  start, flags = time.perf_counter(), ['--dry_run'] if arguments.dry_run else []
  results, record = {'cases': {}}, None
  cases = [train_gpu_cases.shrunk(case) if arguments.dry_run else case for case in train_gpu_cases.CASES]
  for n, case in enumerate(cases):
    failed = []
    for attempt in attempts(case):
      left = 60 * arguments.minutes - (time.perf_counter() - start)
      # About half of a case's time is starting and compiling.
      seconds = 1.0 if arguments.dry_run else max(5.0, 0.5 * left / (len(cases) - n))
      worker = gpu_worker.Worker(sys.executable, '-m', 'benchmarks.train_gpu_worker', *flags)
      try:
        (machine,) = worker.stream('describe', _SILENCE)
        record = record or gpu.Record('train_gpu', _command(arguments, flags), arguments.out, machine)
        (result,) = worker.stream(
          'train', _SILENCE, case=dataclasses.asdict(attempt), dry_run=arguments.dry_run, seconds=seconds
        )
      except gpu_worker.Died as death:
        result = {'error': gpu.words(death)}
      finally:
        worker.kill()
      if 'error' not in result:
        break
      print(f'{attempt.name}: {result["error"]}', flush=True)
      failed.append(f'{attempt.rows} rows, {attempt.optimizer}, remat {attempt.remat}: {result["error"]}')
    results['cases'][case.name] = {'case': dataclasses.asdict(attempt), 'failed': failed, **result}
    if record:
      record.write(results, table(results))
    print(f'{case.name}: {json.dumps(results["cases"][case.name])}', flush=True)
  print(table(results), flush=True)
  return all('error' not in result for result in results['cases'].values())


def attempts(case) -> list:
  """The case, and what is tried in its place where it does not fit: half the rows, then less state."""
  fewer = dataclasses.replace(case, rows=max(1, case.rows // 2))
  return [case, fewer, dataclasses.replace(fewer, remat='full', optimizer='adafactor')]


def _command(arguments, flags):
  return f'python -m benchmarks.train_gpu --minutes={arguments.minutes:g} {" ".join(flags)}'.strip()


def compile_only(arguments) -> None:
  """Prints for each case what the compiler says of memory and ptxas of our kernels."""
  gpu.choose_platform(arguments)
  from benchmarks import train_gpu_worker
  from training import counting, program

  devices = gpu.topology(arguments.target_config)
  chosen = [case for case in train_gpu_cases.CASES if arguments.case in case.name]
  with gpu.ptxas_dumps() as dumps:
    for case in chosen:
      start = time.perf_counter()
      built = program.build(train_gpu_cases.config(case, dry_run=False), devices=devices)
      with target(gpu.H200):
        compiled = built.step.lower(built.abstract_state, train_gpu_cases.batch_shape(case)).compile()
      memory = train_gpu_worker.memory(compiled)
      bound = case.rows * case.length * counting.flops_per_token(built.model, case.length) / gpu.REACHABLE_FLOPS
      print(
        f'{case.name}, {case.rows} x {case.length}, remat {case.remat}, {case.optimizer}, '
        f'{built.model.num_params / 1e6:,.0f}M parameters: state {memory["argument_bytes"] / _GIB:.1f} GiB, '
        f'temporaries {memory["temporary_bytes"] / _GIB:.1f} GiB; '
        f'{train_gpu_worker.mosaic_kernels(compiled)} calls of Mosaic kernels; '
        f'{gpu.ptxas_line(gpu.ptxas_reports(dumps))}; a step takes at least {1e3 * bound:.0f} ms; '
        f'compiled in {time.perf_counter() - start:.0f} s',
        flush=True,
      )


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  gpu.add_arguments(parser)
  parser.add_argument('--minutes', type=float, default=6.0, help='shared out over the cases')
  parser.add_argument('--case', default='', help='only cases whose name has this in it; with --compile_only')
  arguments = parser.parse_args()
  if arguments.compile_only:
    compile_only(arguments)
    return 0
  return 0 if measure(arguments) else 1


if __name__ == '__main__':
  sys.exit(main())
