"""Transformer models: nnx modules behind a functional boundary.

`model, params = build(model_config)` works alone, without data or a mesh.
"""

from model.families import build, check, create, resolve

__all__ = ['build', 'check', 'create', 'resolve']
