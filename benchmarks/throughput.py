"""Training throughput against a plain nanoGPT-shaped model in PyTorch, in interleaved rounds on the same cores.

  python -m benchmarks.throughput --torch-python=PATH [--shapes S M L] [--rounds 7] [--seconds 6]

Each side first shows its fastest mode: PyTorch of eager and compile, float32 and bfloat16 autocast, and the fastest of
them also with a heap that keeps its memory; this project of float32 and bfloat16, with memory as train.py holds it.
Then the two take turns, each round with the rate of a large bfloat16 product; medians over rounds are reported.
"""

import argparse
import json
import statistics
import sys

from benchmarks import common

SHAPES = {
  'S': {'num_layers': 4, 'num_heads': 4, 'embed_dim': 128, 'sequence_length': 64, 'rows': 12, 'vocab_size': 65},
  'M': {'num_layers': 6, 'num_heads': 6, 'embed_dim': 384, 'sequence_length': 256, 'rows': 8, 'vocab_size': 65},
  'L': {'num_layers': 12, 'num_heads': 12, 'embed_dim': 768, 'sequence_length': 512, 'rows': 2, 'vocab_size': 50304},
}
TORCH_MODES = ('float32-eager', 'float32-compile', 'bfloat16-eager', 'bfloat16-compile')
MESHLM_MODES = ('float32', 'bfloat16')


class Trainer:
  """A worker that trains one model, with the number of steps that takes a round's seconds."""

  def __init__(self, worker: common.Worker, tokens_per_step: int, seconds: float):
    self._worker = worker
    self._tokens_per_step = tokens_per_step
    self.ready = worker.ready
    self._steps = 2
    self._steps = max(2, round(seconds * self.measure() / tokens_per_step))

  def measure(self) -> float:
    """Tokens per second over one round."""
    return self._steps * self._tokens_per_step / self._worker.ask(steps=self._steps)['seconds']

  def gemm(self) -> float:
    """GFLOP/s of a large bfloat16 product."""
    return self._worker.ask(gemm='bfloat16')['gflops']

  def close(self) -> None:
    self._worker.close()


def fastest(start, modes, memories):
  """(mode, its Trainer, tokens/s by mode): the best of three rounds decides; the others are ended."""
  rates, best = {}, None

  def challenge(mode, memory):
    nonlocal best
    name, trainer = f'{mode} {memory}', start(mode, memory)
    rates[name] = max(trainer.measure() for _ in range(3))
    if best and rates[name] <= rates[best[0]]:
      trainer.close()
    else:
      if best:
        best[1].close()
      best = name, trainer

  for mode in modes:
    challenge(mode, memories[0])
  for memory in memories[1:]:
    challenge(best[0].split()[0], memory)
  return *best, rates


def compare(shape: dict, torch_python: str, rounds: int, seconds: float) -> dict:
  """Rounds of one shape, taking turns."""
  tokens, text = shape['rows'] * shape['sequence_length'], json.dumps(shape)

  def start(*command):
    return lambda mode, memory: Trainer(common.Worker(*command, text, mode, memory=memory), tokens, seconds)

  torch_mode, torch_trainer, torch_rates = fastest(
    start(torch_python, 'benchmarks/torch/throughput_worker.py'), TORCH_MODES, ('large-pages', 'kept-heap')
  )
  mode, trainer, rates = fastest(
    start(sys.executable, '-m', 'benchmarks.throughput_worker'), MESHLM_MODES, ('train.py',)
  )
  sides = trainer, torch_trainer
  pairs, gemms = [], []
  for _ in range(rounds):
    pairs.append(tuple(side.measure() for side in sides))
    gemms.append(tuple(side.gemm() for side in sides))
  parameters, torch_parameters = trainer.ready['parameters'], torch_trainer.ready['parameters']
  if parameters != torch_parameters:
    raise RuntimeError(f'the models differ: {parameters} parameters against {torch_parameters}')
  trainer.close()
  torch_trainer.close()
  ratios = [ours / theirs for ours, theirs in pairs]
  return {
    'shape': shape,
    'parameters': parameters,
    'torch': torch_trainer.ready['torch'],
    'meshlm_mode': mode,
    'meshlm_modes': rates,
    'meshlm_tokens_per_second': statistics.median(ours for ours, _ in pairs),
    'torch_mode': torch_mode,
    'torch_modes': torch_rates,
    'torch_tokens_per_second': statistics.median(theirs for _, theirs in pairs),
    'meshlm_gemm_gflops': statistics.median(ours for ours, _ in gemms),
    'torch_gemm_gflops': statistics.median(theirs for _, theirs in gemms),
    'ratio': statistics.median(ratios),
    'ratio_range': [min(ratios), max(ratios)],
  }


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  common.add_torch_python(parser)
  parser.add_argument('--shapes', nargs='+', choices=SHAPES, default=list(SHAPES))
  parser.add_argument('--rounds', type=int, default=7)
  parser.add_argument('--seconds', type=float, default=6.0, help='of one side of a round')
  arguments = parser.parse_args()
  torch_python = common.require_torch_python(parser, arguments.torch_python)
  common.warn_if_busy()
  results = {
    name: compare(SHAPES[name], torch_python, arguments.rounds, arguments.seconds) for name in arguments.shapes
  }
  rows = [
    [
      name,
      f'{r["shape"]["num_layers"]}, {r["shape"]["num_heads"]}, {r["shape"]["embed_dim"]}',
      f'T{r["shape"]["sequence_length"]} B{r["shape"]["rows"]} V{r["shape"]["vocab_size"]}',
      r['torch_tokens_per_second'],
      r['torch_mode'],
      r['meshlm_tokens_per_second'],
      r['meshlm_mode'],
      f'{r["torch_gemm_gflops"]:.0f}, {r["meshlm_gemm_gflops"]:.0f}',
      f'{r["ratio"]:.2f} ({r["ratio_range"][0]:.2f} to {r["ratio_range"][1]:.2f})',
    ]
    for name, r in results.items()
  ]
  table = common.markdown_table(
    [
      'shape',
      'layers, heads, width',
      'batch',
      'PyTorch tokens/s',
      'its fastest mode',
      'meshlm tokens/s',
      'its fastest mode',
      'bfloat16 GFLOP/s',
      'ratio',
    ],
    rows,
  )
  common.write(
    'throughput',
    {'shapes': results},
    table,
    f'python -m benchmarks.throughput --rounds={arguments.rounds} --seconds={arguments.seconds:g}',
  )


if __name__ == '__main__':
  main()
