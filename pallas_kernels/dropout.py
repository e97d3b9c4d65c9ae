"""Counter-based dropout: whether a probability is dropped follows from its place and the seed alone."""

import jax.numpy as jnp


def keep_mask(seed, rate, batch, head, query, key):
  """Returns True where a probability is kept, with probability 1 - rate, for integer arrays that broadcast together.

  Cost is a few integer operations an element: places of a row are counted on from the row's hash, then mixed by
  Wellons' lowbias32 hash.
  """
  row = jnp.asarray(seed).astype(jnp.uint32)
  for index in (batch, head, query):
    row = _mix(row ^ _mix(jnp.asarray(index).astype(jnp.uint32) + jnp.uint32(0x9E3779B9)))
  bits = _mix(row + jnp.asarray(key).astype(jnp.uint32) * jnp.uint32(0x9E3779B9))
  return bits >= jnp.uint32(round(rate * 2**32))


def _mix(x):
  x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
  x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
  return x ^ (x >> 16)
