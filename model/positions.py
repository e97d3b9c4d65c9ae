"""The mathematics of positions. B batch, L queries, S keys, H heads, K head_dim, D embed, W distances.

Distances are those of a row: of query i, which stands at `first + i`, and key j it is j - (first + i). All of one call
lie in a list of W = L + S - 1 of them, from `distances`; what is computed for each is laid out for pairs by `of_pairs`.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

POSITIONS = ('rope', 'learned', 'sinusoidal', 'none', 'alibi', 't5', 'shaw', 'xlnet')
SCALINGS = ('none', 'linear', 'dynamic', 'yarn', 'llama3')
RELATIVE = ('alibi', 't5', 'shaw', 'xlnet')  # those that act on logits and not on vectors


def rotary_dim(rope_config, head_dim: int) -> int:
  """Dimensions of a head that are rotated."""
  return int(head_dim * rope_config.fraction)


def rotation(positions_BxL, rope_config, head_dim: int):
  """Cosines and sines of rotary embeddings (Su et al. 2021, eq. 34): two arrays [B, L, 1, rotated / 2].

  Wavelengths are rescaled for texts longer than those of training: all of them (Chen et al. 2023), with the length of
  the row beyond `original_length` (dynamic NTK), the long ones only (YaRN, Peng et al. 2023, section 3; Llama 3,
  Grattafiori et al. 2024, section 3.4.2). With the dynamic one, keys that a cache holds keep the angles they had when
  they were written.
  """
  dim, magnitude = rotary_dim(rope_config, head_dim), 1.0
  match rope_config.scaling:
    case 'none':
      frequencies = _frequencies(rope_config.theta, dim)
    case 'linear':
      frequencies = _frequencies(rope_config.theta, dim) / rope_config.factor
    case 'dynamic':
      frequencies = _dynamic_frequencies(positions_BxL, rope_config, dim)
    case 'yarn':
      frequencies, magnitude = _yarn_frequencies(rope_config, dim), yarn_magnitude(rope_config)
    case 'llama3':
      frequencies = _llama3_frequencies(rope_config, dim)
  return _cosines_and_sines(positions_BxL, frequencies, magnitude)


def local_rotation(positions_BxL, rope_config, head_dim: int):
  """As `rotation` for local layers: with a base of their own they are not rescaled (Gemma 3, Kamath et al. 2025)."""
  if not rope_config.local_theta:
    return rotation(positions_BxL, rope_config, head_dim)
  return _cosines_and_sines(positions_BxL, _frequencies(rope_config.local_theta, rotary_dim(rope_config, head_dim)))


def _cosines_and_sines(positions_BxL, frequencies, magnitude=1.0):
  angles = positions_BxL[:, :, None, None].astype(jnp.float32) * jnp.asarray(frequencies, jnp.float32)
  return magnitude * jnp.cos(angles), magnitude * jnp.sin(angles)


def _frequencies(theta, dim):
  return theta ** (-np.arange(0, dim, 2) / dim)


def _dynamic_frequencies(positions_BxL, rope_config, dim):
  length_B = jnp.max(positions_BxL, axis=1).astype(jnp.float32) + 1
  stretch_B = jnp.maximum(length_B / rope_config.original_length, 1.0) * rope_config.factor - (rope_config.factor - 1)
  theta_B = rope_config.theta * stretch_B ** (dim / (dim - 2))
  return theta_B[:, None, None, None] ** (-jnp.arange(0, dim, 2) / dim)


def _yarn_frequencies(rope_config, dim):
  def dimension(rotations):
    """That in which a text of the original length turns this many times."""
    ratio = rope_config.original_length / (rotations * 2 * math.pi)
    return dim * math.log(ratio) / (2 * math.log(rope_config.theta))

  low, high = dimension(rope_config.beta_fast), dimension(rope_config.beta_slow)
  if rope_config.truncate:
    low, high = math.floor(low), math.ceil(high)
  low, high = max(low, 0), min(high, dim - 1)
  ramp = np.clip((np.arange(dim // 2) - low) / (high - low or 1e-3), 0, 1)
  return _frequencies(rope_config.theta, dim) * (ramp / rope_config.factor + 1 - ramp)


def yarn_magnitude(rope_config) -> float:
  """What YaRN multiplies cosines and sines with (Peng et al. 2023, eq. 22; DeepSeek-V2 for two scales)."""

  def magnitude(scale):
    return 0.1 * scale * math.log(rope_config.factor) + 1.0 if rope_config.factor > 1 else 1.0

  if rope_config.attention_factor:
    return rope_config.attention_factor
  if rope_config.mscale and rope_config.mscale_all_dim:
    return magnitude(rope_config.mscale) / magnitude(rope_config.mscale_all_dim)
  return magnitude(1.0)


def _llama3_frequencies(rope_config, dim):
  frequencies = _frequencies(rope_config.theta, dim)
  turns = rope_config.original_length * frequencies / (2 * math.pi)  # within a text of the original length
  low, high = rope_config.low_freq_factor, rope_config.high_freq_factor
  kept = np.clip((turns - low) / (high - low), 0, 1)
  return frequencies * ((1 - kept) / rope_config.factor + kept)


def rotate(x_BxLxHxK, rotation, interleaved: bool = False):
  """Rotates the pairs (x_i, x_{i + R/2}) of the first R dimensions by their angles: the half-split layout of GPT-NeoX
  and LLaMA weights; or the pairs (x_{2i}, x_{2i + 1}), `interleaved` as Su et al. and DeepSeek have them. Dimensions
  beyond R, for which there are no angles, stay as they are."""
  cos, sin = rotation
  rotated = 2 * cos.shape[-1]
  if interleaved:
    pairs = x_BxLxHxK[..., :rotated].reshape(*x_BxLxHxK.shape[:-1], -1, 2)
    first, second = pairs[..., 0], pairs[..., 1]
    turned = jnp.stack([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return jnp.concatenate([turned.reshape(*x_BxLxHxK.shape[:-1], -1), x_BxLxHxK[..., rotated:]], axis=-1)
  first, second = jnp.split(x_BxLxHxK[..., :rotated], 2, axis=-1)
  turned = [first * cos - second * sin, second * cos + first * sin]
  if rotated < x_BxLxHxK.shape[-1]:
    turned.append(x_BxLxHxK[..., rotated:])
  return jnp.concatenate(turned, axis=-1)


def sinusoidal(positions, embed_dim: int):
  """Fixed position vectors [..., D] (Vaswani et al. 2017, section 3.5), sines in the first half, cosines after."""
  frequencies = 10000.0 ** (-jnp.arange(0, embed_dim, 2, dtype=jnp.float32) / embed_dim)
  angles = positions[..., None].astype(jnp.float32) * frequencies
  return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def alibi_slopes(num_heads: int) -> np.ndarray:
  """Slopes [H] of linear biases (Press et al. 2021, section 3).

  For a power of two, 2^(-8/H), its square, ...; else those of the next lower one, and then every other one of its
  double.
  """
  lower = 1 << (num_heads.bit_length() - 1)
  geometric = lambda heads: 2.0 ** (-8.0 / heads * np.arange(1, heads + 1))
  slopes = [geometric(lower), geometric(2 * lower)[::2][: num_heads - lower]]
  return np.concatenate(slopes).astype(np.float32)


def t5_buckets(distances, num_buckets: int, max_distance: int, bidirectional: bool):
  """The bucket of each distance, int32 (Raffel et al. 2020, section 2.1): half of them exact, the others growing with
  the logarithm up to `max_distance`; if bidirectional, half of all for keys that come after their query."""
  buckets = num_buckets // 2 if bidirectional else num_buckets
  exact = buckets // 2
  steps = np.arange(max_distance + 1, dtype=np.float32)
  # In float32, as the original has it: which distance is the first of its bucket depends on the rounding.
  growth = np.log(np.maximum(steps, 1) / np.float32(exact)) / np.float32(math.log(max_distance / exact))
  large = exact + (growth * np.float32(buckets - exact)).astype(np.int32)
  of_step = jnp.asarray(np.where(steps < exact, steps, np.minimum(large, buckets - 1)).astype(np.int32))
  if not bidirectional:
    return of_step[jnp.clip(-distances, 0, max_distance)]
  return of_step[jnp.minimum(jnp.abs(distances), max_distance)] + jnp.where(distances > 0, buckets, 0)


def distances(queries: int, keys: int, first=0):
  """int32 [W], ascending: every distance between `queries`, the first of which stands at `first`, and `keys`."""
  return jnp.arange(1 - queries, keys, dtype=jnp.int32) - first


def of_pairs(x_LxW, keys: int):
  """[..., L, S], for each query and key the value of their distance, of values [..., L or 1, W] by `distances`.

  Memory is read as rows that are one element longer (Dai et al. 2019, appendix B), which needs no gather.
  """
  width = x_LxW.shape[-1]
  queries = width - keys + 1
  wide = jnp.pad(x_LxW, [(0, 0)] * (x_LxW.ndim - 1) + [(0, 1)])
  wide = jnp.broadcast_to(wide, (*x_LxW.shape[:-2], queries, width + 1))
  flat = wide.reshape(*x_LxW.shape[:-2], queries * (width + 1))[..., : queries * width]
  return flat.reshape(*x_LxW.shape[:-2], queries, width)[..., queries - 1 :]


def between(x_LxS, queries: int):
  """The inverse in sum: [..., L, W], the sum of values [..., L, S] by query and distance."""
  keys = x_LxS.shape[-1]
  _, transposed = jax.vjp(lambda x: of_pairs(x, keys), jnp.zeros((*x_LxS.shape[:-1], queries + keys - 1), x_LxS.dtype))
  return transposed(x_LxS)[0]
