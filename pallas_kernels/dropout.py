"""Counter-based dropout: whether a probability is dropped follows from its place and the seed alone."""

import jax.numpy as jnp


def keep_mask(seed, rate, offset, batch, head, query, key):
  """Returns True where a probability is kept, with probability 1 - rate, for integer arrays that broadcast together.

  Cost is a few integer operations an element: places of a row are counted on from the row's hash, then mixed by
  Wellons' lowbias32 hash.

  Args:
    seed: int or uint32 scalar.
    rate: static, in [0, 1).
    offset: four integers that are added to the places, as `AttentionSpec.dropout_offset`, or None.
    batch, head, query, key: places in the call.
  """
  row, places = jnp.asarray(seed).astype(jnp.uint32), (batch, head, query, key)
  if offset is not None:
    places = [place + first for place, first in zip(map(_unsigned, places), map(_unsigned, offset), strict=True)]
  *rows, key = map(_unsigned, places)
  for index in rows:
    row = _mix(row ^ _mix(index + jnp.uint32(0x9E3779B9)))
  bits = _mix(row + key * jnp.uint32(0x9E3779B9))
  return bits >= jnp.uint32(round(rate * 2**32))


def _unsigned(x):
  return jnp.asarray(x).astype(jnp.uint32)


def _mix(x):
  x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
  x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
  return x ^ (x >> 16)
