"""What every layer of one call shares, and what is kept between calls. B batch, L new tokens, S keys, K head_dim."""

import dataclasses

import jax
import jax.numpy as jnp

from model.stream import Stream, Visibility
from pallas_kernels import AttentionSpec


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Side:
  """The queries of an attention, or its keys.

  Attributes:
    segment_ids: int32 [B, L or S].
    order: int32 [B, L or S] to compare with the other side's, or None.
    rotation: rotary cosines and sines of the tokens that are projected in this call, see `positions.rotation`; None
      where nothing is rotated.
  """

  segment_ids: jax.Array
  order: jax.Array | None = None
  rotation: tuple[jax.Array, jax.Array] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
  """What attention needs of a call besides its inputs; an argument of every layer.

  Attributes:
    queries: the side that looks.
    keys: the side that is seen; with a cache all of its slots.
    bias: added to the logits, see `AttentionSpec`; or None.
    length: int32 scalar, the slot of the cache from which new keys are written; None without a cache.
    visibility: which keys a query sees within its segment.
  """

  queries: Side
  keys: Side
  bias: jax.Array | None = None
  length: jax.Array | None = None
  visibility: Visibility = dataclasses.field(default=Visibility.CAUSAL, metadata={'static': True})

  def spec(self, *, window: int = 0, dropout_rate: float = 0.0, key=None) -> AttentionSpec:
    """The mask of one attention.

    Args:
      window: tokens that a query sees, itself included; 0 = all.
      dropout_rate: share of probabilities zeroed where there is a `key`.
      key: PRNG key, or None: no dropout.

    Raises:
      ValueError: a window where visibility goes by an order, which says nothing about distances.
    """
    if window and self.visibility in (Visibility.PREFIX, Visibility.ORDER):
      raise ValueError(
        f'model.attention.window={window} counts distances in text, which visibility '
        f'{self.visibility.value!r} does not have; set model.attention.window=0'
      )
    dropout = {}
    if key is not None and dropout_rate:
      dropout = {'dropout_rate': dropout_rate, 'dropout_seed': jax.random.bits(key, (), jnp.uint32)}
    by_index = self.visibility is Visibility.CAUSAL and self.queries.order is None
    return AttentionSpec(
      causal=by_index,
      window=window or None,
      bias=self.bias,
      q_order=self.queries.order,
      kv_order=self.keys.order,
      q_segment_ids=self.queries.segment_ids,
      kv_segment_ids=self.keys.segment_ids,
      **dropout,
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
  """Keys and values kept between calls: of the tokens so far, or for cross-attention of another stack's output.

  The latter is filled once, with as many slots as there are keys; layers are then called without new ones.

  Attributes:
    layers: a pair of keys and values [B, S, G, K] for each layer.
    segment_ids: int32 [B, S], 0 where nothing is written.
    order: int32 [B, S].
    length: int32 scalar, slots written.
  """

  layers: tuple
  segment_ids: jax.Array
  order: jax.Array
  length: jax.Array

  @classmethod
  def empty(cls, num_layers: int, batch: int, slots: int, num_kv_heads: int, head_dim: int, dtype=jnp.float32):
    """A cache with nothing in it."""
    values = jnp.zeros((batch, slots, num_kv_heads, head_dim), dtype)
    nothing = jnp.zeros((batch, slots), jnp.int32)
    return cls(((values, values),) * num_layers, nothing, nothing, jnp.zeros((), jnp.int32))

  def extended(self, layers, keys: Side, new_tokens: int):
    """The cache after a call whose context had `keys`, and that wrote `layers`."""
    return Cache(layers, keys.segment_ids, keys.order, self.length + new_tokens)


def for_self_attention(stream: Stream, visibility: Visibility, rotation=None, cache: Cache | None = None) -> Context:
  """The context in which the tokens of a stream see each other, and those of a cache before them.

  Causal tokens are compared by their index in the row without a cache, by position with one.

  Raises:
    ValueError: `stream.order` is missing where the visibility goes by it, or given where it does not; or the
      visibility is not one that a cache can continue.
  """
  ordered = visibility in (Visibility.PREFIX, Visibility.ORDER)
  if ordered != (stream.order is not None):
    raise ValueError(
      f'visibility {visibility.value!r} '
      + ('needs Stream.order' if ordered else 'does not go by Stream.order; leave it None, or use prefix or order')
    )
  if cache is None:
    side = Side(stream.segment_ids, stream.order, rotation)
    return Context(side, side, visibility=visibility)
  if visibility not in (Visibility.CAUSAL, Visibility.PREFIX):
    raise ValueError(
      f'visibility {visibility.value!r} cannot go on from a cache, since earlier tokens would have to '
      'see later ones; generate with causal or prefix'
    )
  queries = Side(stream.segment_ids, stream.positions if stream.order is None else stream.order, rotation)
  keys = Side(
    _append(cache.segment_ids, queries.segment_ids, cache.length),
    _append(cache.order, queries.order, cache.length),
    rotation,
  )
  return Context(queries, keys, length=cache.length, visibility=visibility)


def _append(slots_BxS, new_BxL, length):
  return jax.lax.dynamic_update_slice_in_dim(slots_BxS, new_BxL.astype(slots_BxS.dtype), length, axis=1)
