"""Learned relative positions. B batch, L queries, S keys, H heads, K head_dim, W distances.

Each module adds to the logits what `positions.of_pairs` lays out for every query and key; `first` is the place of the
first query among the keys.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from model import layers
from model import positions as pos
from parallel import axes as ax


def _table(model_config, rows, width, axis, rngs):
  """A vector a row; rows stand for places, as those of learned positions do."""
  init = layers.initializer(model_config, width, width)
  return nnx.Param(init(rngs.params(), (rows, width)), axes=(ax.LENGTH, axis))


class BucketBias(layers.Module):
  """A bias for each head and bucket of distances, the same in all layers (Raffel et al. 2020, section 2.1)."""

  def __init__(self, scope, model_config, bidirectional: bool, *, rngs):
    self.scope, self.bidirectional = scope, bidirectional
    self.num_buckets, self.max_distance = model_config.relative.num_buckets, model_config.relative.max_distance
    self.table = _table(model_config, self.num_buckets, model_config.num_heads, ax.HEADS, rngs)

  def __call__(self, queries: int, keys: int, first):
    """Biases [1, H, L, S]."""
    return self.distances().bias(queries, keys, first)

  def distances(self) -> 'Distances':
    """What gives the biases of any run of queries and keys."""
    return Distances(self.table[...], self.num_buckets, self.max_distance, self.bidirectional)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Distances:
  """A bias for each head and bucket of distances, not yet laid out for pairs of queries and keys.

  Attributes:
    table_RxH: float [num_buckets, H].
    num_buckets, max_distance, bidirectional: see `positions.t5_buckets`.
  """

  table_RxH: jax.Array
  num_buckets: int = dataclasses.field(metadata={'static': True})
  max_distance: int = dataclasses.field(metadata={'static': True})
  bidirectional: bool = dataclasses.field(metadata={'static': True})

  def bias(self, queries: int, keys: int, first):
    """Biases [1, H, L, S]."""
    distances_W = pos.distances(queries, keys, first)
    buckets_W = pos.t5_buckets(distances_W, self.num_buckets, self.max_distance, self.bidirectional)
    biases_HxW = jnp.take(self.table_RxH, buckets_W, axis=0).T
    return pos.of_pairs(biases_HxW[None, :, None], keys)

  def of_heads(self, first, count: int) -> 'Distances':
    """Those of `count` heads, from `first` on."""
    return dataclasses.replace(self, table_RxH=jax.lax.dynamic_slice_in_dim(self.table_RxH, first, count, axis=1))


class _Clipped(layers.Module):
  """A vector for each distance up to `max_distance` on either side (Shaw et al. 2018, section 3.2), for all heads."""

  def __init__(self, scope, model_config, *, rngs):
    self.scope, self.max_distance = scope, model_config.relative.max_distance
    self.table = _table(model_config, 2 * self.max_distance + 1, model_config.head_dim, ax.HEAD_DIM, rngs)

  def vectors(self, distances_W):
    rows_W = jnp.clip(distances_W, -self.max_distance, self.max_distance) + self.max_distance
    return jnp.take(self.table[...], rows_W, axis=0)


class ClippedKeys(_Clipped):
  """What queries see in the distance of a key (Shaw et al. 2018, eq. 5)."""

  def __call__(self, q_BxLxHxK, keys: int, first):
    """Products [B, H, L, S]."""
    vectors_WxK = self.vectors(pos.distances(q_BxLxHxK.shape[1], keys, first))
    return pos.of_pairs(jnp.einsum('BLHK,WK->BHLW', q_BxLxHxK, vectors_WxK), keys)


class ClippedValues(_Clipped):
  """What the distance of a key adds to its value (Shaw et al. 2018, eq. 3)."""

  def __call__(self, probabilities_BxHxLxS, first):
    """Sums [B, L, H, K]."""
    queries, keys = probabilities_BxHxLxS.shape[2:]
    vectors_WxK = self.vectors(pos.distances(queries, keys, first))
    return jnp.einsum('BHLW,WK->BLHK', pos.between(probabilities_BxHxLxS, queries), vectors_WxK)


class TransformerXL(layers.Module):
  """Relative attention of Transformer-XL (Dai et al. 2019, section 3.3) with the segments of XLNet (Yang et al. 2019,
  section 2.5): (q + u) k + (q + v) r + (q + w) s.

  u, v and w are learned, r is the sinusoidal vector of the distance under a projection, s tells whether the two tokens
  are of one type.
  """

  def __init__(self, scope, model_config, *, rngs):
    self.scope, self.embed_dim = scope, model_config.embed_dim
    heads, axes = (model_config.num_heads, model_config.head_dim), (ax.HEADS, ax.HEAD_DIM)
    self.position = layers.Linear(
      'position', model_config, (self.embed_dim,), (ax.EMBED,), heads, axes, bias=False, rngs=rngs
    )

    def vectors(*rows):
      init = layers.initializer(model_config, self.embed_dim, self.embed_dim)
      return nnx.Param(init(rngs.params(), (*rows, *heads)), axes=(*(ax.LENGTH for _ in rows), *axes))

    self.content_bias, self.position_bias = vectors(), vectors()
    has_types = model_config.token_types > 0
    self.type_bias, self.type_table = (vectors(), vectors(2)) if has_types else (None, None)

  def __call__(self, q_BxLxHxK, keys: int, first, targets_BxM=None, types=None):
    """Returns what is added to the products of queries and keys [B, H, L, S], and the queries with `u` [B, L, H, K].

    Args:
      q_BxLxHxK: queries; the last M of them stand at `targets_BxM`, where these are given.
      keys: S.
      first: place of the first query.
      targets_BxM: int32, places among the keys; or None.
      types: token types of queries [B, L] and keys [B, S], or None: nothing is said about them.
    """
    in_place = q_BxLxHxK.shape[1] - (0 if targets_BxM is None else targets_BxM.shape[1])
    distances_W = pos.distances(in_place, keys, first)
    r_WxHxK = self.position(pos.sinusoidal(-distances_W, self.embed_dim))
    by_distance = jnp.einsum('BLHK,WHK->BHLW', q_BxLxHxK + self.position_bias[...], r_WxHxK)
    bias = pos.of_pairs(by_distance[:, :, :in_place], keys)
    if targets_BxM is not None:
      index_BxMxS = jnp.arange(keys) - targets_BxM[:, :, None] + in_place - 1
      of_targets = jnp.take_along_axis(by_distance[:, :, in_place:], index_BxMxS[:, None], axis=-1)
      bias = jnp.concatenate([bias, of_targets], axis=2)
    if types is not None and self.type_table is not None:
      q_types, k_types = types
      by_type = jnp.einsum('BLHK,THK->BHLT', q_BxLxHxK + self.type_bias[...], self.type_table[...])
      differ_BxLxS = q_types[:, :, None] != k_types[:, None, :]
      bias += jnp.where(differ_BxLxS[:, None], by_type[..., 1:], by_type[..., :1])
    return bias, q_BxLxHxK + self.content_bias[...]
