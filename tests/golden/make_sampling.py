"""Writes sampling.npz: what the logits processors of Hugging Face transformers make of random logits.

Run with an interpreter that has torch and transformers: `python tests/golden/make_sampling.py`.
"""

import pathlib

import numpy as np
import torch
import transformers

ROWS, VOCAB = 6, 83


def main():
  rng = np.random.default_rng(0)
  logits = (3 * rng.standard_normal((ROWS, VOCAB))).astype(np.float32)
  history = rng.integers(0, VOCAB, (ROWS, 20))
  processors = {
    'top_k_7': [transformers.TopKLogitsWarper(7)],
    'top_p_0.8': [transformers.TopPLogitsWarper(0.8)],
    'min_p_0.1': [transformers.MinPLogitsWarper(0.1)],
    'repetition_penalty_1.3': [transformers.RepetitionPenaltyLogitsProcessor(1.3)],
    'all': [
      transformers.RepetitionPenaltyLogitsProcessor(1.3),
      transformers.TemperatureLogitsWarper(0.7),
      transformers.TopKLogitsWarper(20),
      transformers.TopPLogitsWarper(0.9),
      transformers.MinPLogitsWarper(0.02),
    ],
  }
  golden = {'logits': logits, 'history': history.astype(np.int32), 'transformers': transformers.__version__}
  for name, chain in processors.items():
    scores = torch.from_numpy(logits.copy())
    for processor in chain:
      scores = processor(torch.from_numpy(history), scores)
    golden[name] = scores.numpy()
  np.savez_compressed(pathlib.Path(__file__).with_name('sampling.npz'), **golden)


if __name__ == '__main__':
  main()
