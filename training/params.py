"""Names and fingerprints of the leaves of a pytree."""

import hashlib

import jax
import numpy as np


def leaf_paths(tree) -> dict:
  """Flattens a pytree to `{'outer/inner/0': leaf}`, in the pytree's own order.

  Raises:
    ValueError: two leaves would get the same name (a dict key contains '/').
  """
  named = [
    (jax.tree_util.keystr(path, simple=True, separator='/'), leaf)
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
  ]
  flat = dict(named)
  if len(flat) != len(named):
    twice = next(name for name, _ in named if sum(name == other for other, _ in named) > 1)
    raise ValueError(f'two leaves are called {twice!r}; rename one, and keep "/" out of dictionary keys')
  return flat


def params_sha256(params) -> str:
  """SHA-256 over the leaves in sorted order of their paths: path, dtype, shape and bytes (little-endian).

  Args:
    params: pytree of arrays, on any device and in any sharding that this process can read whole.

  Returns:
    64 hexadecimal digits; equal exactly when names, dtypes, shapes and every bit agree.
  """
  digest = hashlib.sha256()
  for name, leaf in sorted(leaf_paths(params).items()):
    array = np.asarray(leaf)
    digest.update(f'{name} {array.dtype.name} {array.shape}\n'.encode())
    digest.update(array_bytes(array))
  return digest.hexdigest()


def array_bytes(array: np.ndarray) -> np.ndarray:
  """The array's bytes in C order as uint8 [nbytes], without a copy where it is contiguous."""
  return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
