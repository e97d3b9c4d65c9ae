"""Training: from a config and a directory to a model, its metrics and its checkpoints."""

import importlib

__all__ = ['Run', 'load_run', 'train']
_HOMES = {'Run': 'training.runs', 'load_run': 'training.runs', 'train': 'training.run'}


def __getattr__(name):
  # Imported when asked for, so that training.step or training.hardware can be had without what reads data.
  if name not in _HOMES:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  return getattr(importlib.import_module(_HOMES[name]), name)
