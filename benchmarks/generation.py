"""Tokens per second of greedy generation with the 124M shape of GPT-2 and random weights.

  python -m benchmarks.generation [--torch-python=PATH] [--rows 1 8] [--rounds 5] [--new_tokens 64]

Float32 and bfloat16 take turns; with --torch-python, an interpreter that has PyTorch and transformers, their generate()
too. Reading the prompts is part of the time.
"""

import argparse
import statistics
import subprocess
import sys

from benchmarks import common

PROMPT_TOKENS = 32
DTYPES = ('float32', 'bfloat16')


def start_workers(torch_python: str | None) -> dict[str, common.Worker]:
  """A worker for each column of the table, by its name."""
  workers = {
    f'meshlm {dtype}': common.Worker(sys.executable, '-m', 'benchmarks.generation_worker', dtype) for dtype in DTYPES
  }
  if torch_python:
    workers |= {
      f'transformers {dtype}': common.Worker(torch_python, 'benchmarks/torch/generation_worker.py', dtype)
      for dtype in DTYPES
    }
  return workers


def measure(workers: dict[str, common.Worker], rows: int, new_tokens: int, rounds: int) -> dict[str, float]:
  """Median tokens per second of each worker over rounds in which they take turns; a first round compiles."""
  request = {'rows': rows, 'prompt_tokens': PROMPT_TOKENS, 'new_tokens': new_tokens}
  rates = {name: [] for name in workers}
  for round_index in range(rounds + 1):
    for name, worker in workers.items():
      seconds = worker.ask(**request)['seconds']
      if round_index:
        rates[name].append(rows * new_tokens / seconds)
  return {name: statistics.median(values) for name, values in rates.items()}


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  common.add_torch_python(parser)
  parser.add_argument('--rows', type=int, nargs='+', default=[1, 8])
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--new_tokens', type=int, default=64)
  arguments = parser.parse_args()
  torch_python = arguments.torch_python
  needed = 'import torch, transformers'
  if torch_python and subprocess.run([torch_python, '-c', needed], capture_output=True).returncode:
    parser.error(f'{torch_python} has no PyTorch or no transformers; install them there, or leave --torch-python out')
  common.warn_if_busy()
  workers = start_workers(torch_python)
  rates = {rows: measure(workers, rows, arguments.new_tokens, arguments.rounds) for rows in arguments.rows}
  for worker in workers.values():
    worker.close()
  results = {
    'prompt_tokens': PROMPT_TOKENS,
    'new_tokens': arguments.new_tokens,
    'rounds': arguments.rounds,
    'workers': {name: worker.ready for name, worker in workers.items()},
    'tokens_per_second': rates,
  }
  table = common.markdown_table(
    ['tokens/s', *workers], [[f'batch {rows}', *values.values()] for rows, values in rates.items()]
  )
  common.write(
    'generation',
    results,
    table,
    f'python -m benchmarks.generation --rounds={arguments.rounds} --new_tokens={arguments.new_tokens}',
  )


if __name__ == '__main__':
  main()
