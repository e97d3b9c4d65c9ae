"""Positions: rotary and sinusoidal mathematics. L length, H heads, K head_dim, D embed."""

import jax.numpy as jnp

POSITIONS = ('rope', 'learned', 'sinusoidal', 'none')


def rotation(positions_BxL, head_dim: int, theta: float):
  """Cosines and sines of rotary embeddings (Su et al. 2021, eq. 34): two arrays [B, L, 1, head_dim / 2]."""
  frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
  angles = positions_BxL[:, :, None, None].astype(jnp.float32) * frequencies
  return jnp.cos(angles), jnp.sin(angles)


def rotate(x_BxLxHxK, rotation):
  """Rotates the pairs (x_i, x_{i + K/2}) by their angles: the half-split layout of GPT-NeoX and LLaMA weights."""
  cos, sin = rotation
  first, second = jnp.split(x_BxLxHxK, 2, axis=-1)
  return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def sinusoidal(positions_BxL, embed_dim: int):
  """Fixed position vectors [B, L, D] (Vaswani et al. 2017, section 3.5), sines in the first half, cosines after."""
  frequencies = 10000.0 ** (-jnp.arange(0, embed_dim, 2, dtype=jnp.float32) / embed_dim)
  angles = positions_BxL[:, :, None].astype(jnp.float32) * frequencies
  return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
