"""The training step of a config, run on request: `{"steps": n}` lines in, `{"seconds": s}` lines out.

Memory is held as train.py holds it. `{"gemm": dtype}` answers the GFLOP/s that a large matrix product reaches.

  python -m benchmarks.throughput_worker '{"num_layers": 4, ..., "vocab_size": 65}' bfloat16
"""

import json
import sys
import time

import jax
import numpy as np

import objectives
from training import configs, hardware, heap, program


def nanogpt_config(shape: dict, dtype: str):
  """The config whose model is nanoGPT's: learned positions, LayerNorm, GELU, no biases, tied head."""
  settings = {
    **{f'model.{key}': shape[key] for key in ('num_layers', 'num_heads', 'embed_dim', 'vocab_size')},
    'model.positions': 'learned',
    'model.norm': 'layernorm',
    'model.activation': 'gelu',
    'model.gated_mlp': False,
    'model.max_length': shape['sequence_length'],
    'data.sequence_length': shape['sequence_length'],
    'data.batch_tokens': shape['rows'] * shape['sequence_length'],
    'precision.dtype': dtype,
  }
  return configs.load('configs/base.py', [f'--config.{key}={value}' for key, value in settings.items()])


def batches(shape: dict):
  """Windows at random places of random tokens, each a document of its own, as the packing `none` gives them."""
  rng = np.random.default_rng(0)
  rows, row_length = shape['rows'], shape['sequence_length'] + 1
  data = rng.integers(shape['vocab_size'], size=1_000_000, dtype=np.int32)
  windows = np.lib.stride_tricks.sliding_window_view(data, row_length)
  segment_ids = np.ones((rows, row_length), np.int32)
  positions = np.tile(np.arange(row_length, dtype=np.int32), (rows, 1))
  while True:
    rows_of_tokens = {
      'tokens': windows[rng.integers(len(windows), size=rows)],
      'segment_ids': segment_ids,
      'positions': positions,
    }
    yield objectives.Causal().examples(rows_of_tokens, None)


def main():
  shape, dtype = json.loads(sys.argv[1]), sys.argv[2]
  compiled = program.build(nanogpt_config(shape, dtype))
  state, stream = compiled.init(), batches(shape)

  def train(state, steps):
    previous = None
    for _ in range(steps):
      state, metrics = compiled.step(state, next(stream))
      if previous is not None:
        _ = previous['loss'].value  # the training loop reads a step's metrics while the next one runs
      previous = metrics
    return jax.block_until_ready(state), metrics

  start = time.perf_counter()
  state, metrics = train(state, 3)
  print(
    json.dumps(
      {
        'parameters': sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        'loss': metrics['loss'].value,
        'start_seconds': time.perf_counter() - start,
      }
    ),
    flush=True,
  )
  heap.keep_if_it_fits()
  for line in sys.stdin:
    request = json.loads(line)
    if 'gemm' in request:
      print(json.dumps({'gflops': hardware.cpu_matmul_flops(request['gemm']) / 1e9}), flush=True)
      continue
    start = time.perf_counter()
    state, _ = train(state, request['steps'])
    print(json.dumps({'seconds': time.perf_counter() - start}), flush=True)


if __name__ == '__main__':
  main()
