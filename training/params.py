"""Names and fingerprints of the leaves of a pytree."""

import hashlib
import zlib

import jax
import jax.numpy as jnp
import numpy as np

_LANES = 2  # fingerprints of 32 bits each


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
  """SHA-256 over the leaves in sorted order of their paths: path, dtype, shape and a fingerprint of the values.

  The fingerprint of a leaf is computed where its shards lie and is the same in every sharding: a sum of a hash of each
  element's bits and place. No array is gathered; every process that holds shards has to call this.

  Args:
    params: pytree of arrays, in any sharding.

  Returns:
    64 hexadecimal digits; equal when names, dtypes, shapes and every bit agree, and else different: for certain where
    one element differs, but for a chance of 2^-64 where several do.
  """
  named = sorted(leaf_paths(params).items())
  digest = hashlib.sha256()
  for (name, leaf), sums in zip(named, jax.device_get(_fingerprints([leaf for _, leaf in named])), strict=True):
    digest.update(f'{name} {leaf.dtype.name} {leaf.shape} {[int(value) for value in sums]}\n'.encode())
  return digest.hexdigest()


@jax.jit
def _fingerprints(leaves) -> list:
  """For each leaf `_LANES` uint32 sums, modulo 2^32, so that their order does not count."""
  return [[_sum_of_hashes(_bits(leaf), lane) for lane in range(_LANES)] for leaf in leaves]


def _sum_of_hashes(bits, lane):
  """Sums a bijection of each element's bits, another one at each place: MurmurHash3's finalizer (Appleby 2011)."""
  odd = lambda number: jnp.uint32(zlib.crc32(f'{lane} {number}'.encode()) | 1)
  mixed = bits * odd(0)
  for axis in range(bits.ndim):
    mixed += jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * odd(axis + 1)
  for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
    mixed = (mixed ^ (mixed >> shift)) * jnp.uint32(factor)
  return jnp.sum(mixed ^ (mixed >> 16), dtype=jnp.uint32)


def _bits(leaf):
  """The bits of an array as uint32, wider elements along one more axis."""
  if leaf.dtype == jnp.bool_:
    return leaf.astype(jnp.uint32)
  width = min(leaf.dtype.itemsize, 4)
  return jax.lax.bitcast_convert_type(leaf, jnp.dtype(f'uint{8 * width}')).astype(jnp.uint32)


def array_bytes(array: np.ndarray) -> np.ndarray:
  """The array's bytes in C order as uint8 [nbytes], without a copy where it is contiguous."""
  return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
