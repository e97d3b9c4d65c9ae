"""One PyTorch model that trains on request: `{"steps": n}` lines in, `{"seconds": s}` lines out.

`{"gemm": dtype}` answers the GFLOP/s that a large matrix product reaches.

  python benchmarks/torch/throughput_worker.py '{"num_layers": 4, ..., "vocab_size": 65}' float32-compile
"""

import json
import sys
import time

import nanogpt
import torch


def gemm_gflops(dtype, size=1024, seconds=0.3):
  operand = torch.ones(size, size, dtype=getattr(torch, dtype))
  torch.mm(operand, operand)
  best, end = float('inf'), time.perf_counter() + seconds
  while (start := time.perf_counter()) < end:
    torch.mm(operand, operand)
    best = min(best, time.perf_counter() - start)
  return 2 * size**3 / best / 1e9


def main():
  shape = nanogpt.Shape(**json.loads(sys.argv[1]))
  trainer = nanogpt.Trainer(shape, sys.argv[2], learning_rate=1e-3, beta2=0.95)
  generator = torch.Generator().manual_seed(0)
  data = torch.randint(shape.vocab_size, (1_000_000,), generator=generator)
  for _ in range(3):
    loss = trainer.step(*nanogpt.random_rows(data, shape, generator))
  print(
    json.dumps(
      {
        'parameters': trainer.num_parameters,
        'loss': loss.item(),
        'torch': torch.__version__,
        'threads': torch.get_num_threads(),
      }
    ),
    flush=True,
  )
  for line in sys.stdin:
    request = json.loads(line)
    if 'gemm' in request:
      print(json.dumps({'gflops': gemm_gflops(request['gemm'])}), flush=True)
      continue
    start = time.perf_counter()
    for _ in range(request['steps']):
      loss = trainer.step(*nanogpt.random_rows(data, shape, generator))
    loss.item()
    print(json.dumps({'seconds': time.perf_counter() - start}), flush=True)


if __name__ == '__main__':
  main()
