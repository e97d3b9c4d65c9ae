"""Tokens of a row spread so that devices have the same to do where later tokens see more.

Each of N devices holds two neighbouring chunks of the 2 N of a row. In zig-zag device n has chunks n and 2 N - 1 - n
(Grattafiori et al. 2024, Llama 3, section 3.3.2; Brandon et al. 2023): at every hop of a causal ring it then has two
pairs of chunks to compute, and of its own three, two of which lie on the diagonal.
"""

import jax.numpy as jnp
from jax import lax

CHUNKS = 2  # of a device


def held(device, devices: int):
  """The chunks of a device in zig-zag, int32 [2]."""
  return jnp.stack([device, 2 * devices - 1 - device])


def enter(x, axis_names: tuple[str, ...]):
  """This device's tokens in zig-zag, [B, L, ...], from those it has in order.

  Raises:
    ValueError: they cannot be halved.
  """
  devices = lax.axis_size(axis_names)
  if x.shape[1] % CHUNKS:
    raise ValueError(
      f'zig-zag halves what a device has of a row, here {x.shape[1]} tokens of {devices * x.shape[1]}; choose a length '
      f'that {CHUNKS * devices} divides'
    )
  even, odd = (lax.ppermute(half, axis_names, pairs) for half, pairs in zip(_halves(x), _journeys(devices)))
  return _swapped(even, odd, axis_names)


def leave(x, axis_names: tuple[str, ...]):
  """The inverse of `enter`."""
  even, odd = _halves(_swapped(*_halves(x), axis_names))
  back = [[(to, start) for start, to in pairs] for pairs in _journeys(lax.axis_size(axis_names))]
  return jnp.concatenate([lax.ppermute(half, axis_names, pairs) for half, pairs in zip((even, odd), back)], axis=1)


def _journeys(devices):
  """Where the first and the second half of each device go: the chunks of even and of odd number."""
  owner = lambda chunk: min(chunk, 2 * devices - 1 - chunk)
  return [[(device, owner(CHUNKS * device + half)) for device in range(devices)] for half in range(CHUNKS)]


def _halves(x):
  return jnp.split(x, CHUNKS, axis=1)


def _swapped(first, second, axis_names):
  """Both in this order on devices of even number, whose lower chunk is of even number, and turned round on others."""
  is_even = lax.axis_index(axis_names) % 2 == 0
  return jnp.where(is_even, jnp.concatenate([first, second], axis=1), jnp.concatenate([second, first], axis=1))
