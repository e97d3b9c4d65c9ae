"""Writes optimizers.npz: parameters after a few updates by PyTorch's own optimizers.

Run with the oracle extra installed: python tests/golden/make_optimizers.py
"""

import pathlib

import numpy as np
import torch

SHAPES = {'kernel': (2, 6, 2, 4), 'scale': (2, 6)}
UPDATES = 5


def optimizer(name, matrices, vectors):
  groups = [{'params': matrices, 'weight_decay': 0.1}, {'params': vectors, 'weight_decay': 0.0}]
  match name:
    case 'adamw':
      return torch.optim.AdamW(groups, lr=3e-2, betas=(0.8, 0.95), eps=1e-6)
    case 'adam':
      return torch.optim.Adam(matrices + vectors, lr=3e-2, betas=(0.8, 0.95), eps=1e-6)
    case 'sgd':
      return torch.optim.SGD(matrices + vectors, lr=3e-2, momentum=0.7)
    case 'rmsprop':
      return torch.optim.RMSprop(matrices + vectors, lr=3e-2, alpha=0.95, eps=1e-6, momentum=0.7)


def main():
  generator = np.random.default_rng(0)
  arrays = {}
  for name, shape in SHAPES.items():
    arrays[f'initial/{name}'] = generator.normal(size=shape).astype(np.float32)
    arrays[f'gradients/{name}'] = generator.normal(size=(UPDATES, *shape)).astype(np.float32)
  for chosen in ('adamw', 'adam', 'sgd', 'rmsprop'):
    params = {name: torch.nn.Parameter(torch.tensor(arrays[f'initial/{name}'])) for name in SHAPES}
    optimize = optimizer(chosen, [params['kernel']], [params['scale']])
    for update in range(UPDATES):
      for name, param in params.items():
        param.grad = torch.tensor(arrays[f'gradients/{name}'][update])
      torch.nn.utils.clip_grad_norm_(params.values(), 10.0)
      optimize.step()
    for name, param in params.items():
      arrays[f'{chosen}/{name}'] = param.detach().numpy()
  np.savez(pathlib.Path(__file__).with_name('optimizers.npz'), **arrays)


if __name__ == '__main__':
  main()
