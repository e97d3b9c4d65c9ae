"""Transformer models: nnx modules behind a functional boundary.

`model, params = build(model_config)` works alone, without data or a mesh.
"""

from model.families import build, check, create, resolve
from model.metrics import Metric
from model.stream import Stream, Visibility

__all__ = ['Metric', 'Stream', 'Visibility', 'build', 'check', 'create', 'resolve']
