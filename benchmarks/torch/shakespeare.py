"""nanoGPT's published CPU run on character-level Shakespeare; prints losses and seconds as JSON.

  python benchmarks/torch/shakespeare.py TRAIN.txt VALIDATION.txt float32-eager

Settings of nanoGPT's README: 4 layers, 4 heads, width 128, 2000 steps of 12 x 64 characters, dropout 0; learning rate
1e-3 with 100 steps of warm-up and cosine decay to 1e-4, beta2 0.99, weight decay 0.1, clipping at 1.
"""

import json
import math
import pathlib
import sys
import time

import nanogpt
import torch

STEPS, WARMUP, PEAK, FINAL = 2000, 100, 1e-3, 1e-4


def learning_rate(step):
  if step < WARMUP:
    return PEAK * (step + 1) / (WARMUP + 1)
  return FINAL + 0.5 * (PEAK - FINAL) * (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP)))


@torch.no_grad()
def mean_loss(trainer, data, shape):
  """Over all of `data`, in windows one after the other."""
  length = shape.sequence_length
  windows = data[: (len(data) - 1) // length * length + 1]
  inputs, targets = windows[:-1].view(-1, length), windows[1:].view(-1, length)
  batches = zip(inputs.split(shape.rows), targets.split(shape.rows), strict=True)
  return sum(trainer.loss(x, y).item() * len(x) for x, y in batches) / len(inputs)


def main():
  texts = [pathlib.Path(path).read_text() for path in sys.argv[1:3]]
  ids = {character: i for i, character in enumerate(sorted(set(''.join(texts))))}
  train, validation = (torch.tensor([ids[character] for character in text]) for text in texts)
  shape = nanogpt.Shape(num_layers=4, num_heads=4, embed_dim=128, sequence_length=64, rows=12, vocab_size=len(ids))
  trainer = nanogpt.Trainer(shape, sys.argv[3], learning_rate=PEAK, beta2=0.99)
  generator = torch.Generator().manual_seed(1337)
  start = time.perf_counter()
  for step in range(STEPS):
    loss = trainer.step(*nanogpt.random_rows(train, shape, generator), learning_rate(step))
  training_seconds = time.perf_counter() - start
  print(
    json.dumps(
      {
        'parameters': trainer.num_parameters,
        'training_seconds': training_seconds,
        'final_loss': loss.item(),
        'validation_loss': mean_loss(trainer, validation, shape),
      }
    )
  )


if __name__ == '__main__':
  main()
