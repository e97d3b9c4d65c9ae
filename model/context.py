"""What every layer of one call shares, and what is kept between calls. B batch, L new tokens, S keys, K head_dim."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from model.relative import Distances
from model.stream import Stream, Visibility
from pallas_kernels import AttentionSpec
from parallel import axes as ax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Side:
  """The queries of an attention, or its keys.

  Attributes:
    segment_ids: int32 [B, L or S].
    order: int32 [B, L or S] to compare with the other side's, or None.
  """

  segment_ids: jax.Array
  order: jax.Array | None = None

  def of_whole_rows(self) -> 'Side':
    """The same on every device that holds tokens of a row: brought together once and not in every layer."""
    return jax.tree.map(lambda x: ax.constrain(x, (ax.BATCH, None)), self)

  def after(self, slots: 'Side', write) -> 'Side':
    """The side of a cache's slots with that of new tokens, which `write(slots, new)` puts in place."""
    return Side(write(slots.segment_ids, self.segment_ids), write(slots.order, self.order))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
  """What attention needs of a call besides its inputs; an argument of every layer.

  Attributes:
    queries: the side that looks.
    keys: the side that is seen; with a cache all of its slots.
    local_keys: what a layer with a window sees, where its cache holds the window alone; else None.
    rotations: rotary cosines and sines of the tokens that are projected in this call, of global and of local layers,
      see `positions.rotation`; None where nothing is rotated.
    bias: added to the logits, see `AttentionSpec`; or None.
    distances: the same by distance, where the length is split over devices, none of which may hold it for all pairs; or
      None.
    token_types: of queries [B, L] and keys [B, S] where attention compares them, else None.
    targets: int32 [B, M] where the last M queries are a second stream: which tokens of the row each is about; or None.
    length: int32 scalar, the slot of the cache from which new keys are written; None without a cache.
    memory: [B, S, D], the other stack's output that cross-attention reads; None where there is none, or where the
      cache holds its keys and values.
    cross: the context of cross-attention, or None.
    visibility: which keys a query sees within its segment.
  """

  queries: Side
  keys: Side
  local_keys: Side | None = None
  rotations: tuple = (None, None)
  bias: jax.Array | None = None
  distances: Distances | None = None
  token_types: tuple[jax.Array, jax.Array] | None = None
  targets: jax.Array | None = None
  length: jax.Array | None = None
  memory: jax.Array | None = None
  cross: 'Context | None' = None
  visibility: Visibility = dataclasses.field(default=Visibility.CAUSAL, metadata={'static': True})

  @property
  def first(self):
    """The place of the first query among the keys."""
    return 0 if self.length is None else self.length

  def spec(self, *, window: int = 0, dropout_rate: float = 0.0, key=None) -> AttentionSpec:
    """The mask of one attention.

    Args:
      window: tokens that a query sees, itself included; 0 = all.
      dropout_rate: share of probabilities zeroed where there is a `key`.
      key: PRNG key, or None: no dropout.

    Raises:
      ValueError: a window where visibility goes by an order, which says nothing about distances.
    """
    if window:
      self.check_distances(f'model.attention.window={window}', 'model.attention.window=0')
    dropout = {}
    if key is not None and dropout_rate:
      dropout = {'dropout_rate': dropout_rate, 'dropout_seed': jax.random.bits(key, (), jnp.uint32)}
    by_index = self.visibility is Visibility.CAUSAL and self.queries.order is None
    keys = self.local_keys if window and self.local_keys is not None else self.keys
    return AttentionSpec(
      causal=by_index,
      window=window or None,
      bias=self.bias,
      q_order=self.queries.order,
      kv_order=keys.order,
      q_segment_ids=self.queries.segment_ids,
      kv_segment_ids=keys.segment_ids,
      **dropout,
    )

  def check_distances(self, what: str, instead: str) -> None:
    """Raises ValueError where visibility goes by an order, in words about what counts distances."""
    if self.visibility in (Visibility.PREFIX, Visibility.ORDER):
      raise ValueError(
        f'{what} counts distances in text, which visibility {self.visibility.value!r} does not have; set {instead}'
      )

  def remember(self, new, cache, window: int = 0):
    """The keys and values that a layer attends to, and its cache with the new ones, each pairs of [B, S, G, K].

    Args:
      new: keys and values of this call.
      cache: those of earlier calls, or None.
      window: of the layer.
    """
    if cache is None:
      return new, None
    if not window or self.local_keys is None:
      updated = tuple(_in_order(*pair, self.length) for pair in zip(cache, new))
      return updated, updated
    updated = tuple(_in_turn(*pair, self.length) for pair in zip(cache, new))
    if new[0].shape[1] == 1:
      return updated, updated
    return tuple(map(_joined, cache, new)), updated


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
  """Keys and values kept between calls: of the tokens so far, or for cross-attention of another stack's output.

  The latter is filled once, with as many slots as there are keys; layers are then called without new ones.

  Attributes:
    layers: a pair of keys and values [B, S, G, K] for each layer; where there is cross-attention, of two such pairs.
    keys: the side of S slots, segment 0 where nothing is written.
    local_keys: the side of the slots of layers that keep a window alone, the latest tokens in turn; or None.
    length: int32 scalar, tokens read.
    memory: segment ids [B, S'] of the keys of cross-attention, or None.
  """

  layers: tuple
  keys: Side
  local_keys: Side | None
  length: jax.Array
  memory: jax.Array | None = None

  @classmethod
  def empty(cls, windows: tuple[int, ...], batch: int, slots: int, num_kv_heads: int, head_dim: int, dtype=jnp.float32):
    """A cache with nothing in it.

    Args:
      windows: one a layer; layers whose window is shorter than `slots` keep that alone. 0 = the layer keeps all.
      batch: rows.
      slots: tokens that the other layers keep.
      num_kv_heads: of each layer.
      head_dim: of each layer.
      dtype: of keys and values.
    """
    kept = [window if 0 < window < slots else slots for window in windows]
    pairs = [(jnp.zeros((batch, number, num_kv_heads, head_dim), dtype),) * 2 for number in kept]
    nothing = lambda number: Side(*(jnp.zeros((batch, number), jnp.int32),) * 2)
    local_keys = nothing(min(kept)) if min(kept) < slots else None
    return cls(tuple(pairs), nothing(slots), local_keys, jnp.zeros((), jnp.int32))

  def extended(self, layers, queries: Side) -> 'Cache':
    """The cache after a call that had `queries` and wrote `layers`."""
    local_keys = self.local_keys
    if local_keys is not None:
      local_keys = queries.after(local_keys, functools.partial(_in_turn, length=self.length))
    keys = queries.after(self.keys, functools.partial(_in_order, length=self.length))
    return Cache(layers, keys, local_keys, self.length + queries.segment_ids.shape[1], self.memory)


def for_self_attention(stream: Stream, visibility: Visibility, cache: Cache | None = None) -> Context:
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
    side = Side(stream.segment_ids, stream.order).of_whole_rows()
    return Context(side, side, visibility=visibility)
  if visibility not in (Visibility.CAUSAL, Visibility.PREFIX):
    raise ValueError(
      f'visibility {visibility.value!r} cannot go on from a cache, since earlier tokens would have to '
      'see later ones; generate with causal or prefix'
    )
  queries = Side(stream.segment_ids, stream.positions if stream.order is None else stream.order)
  extended = cache.extended(cache.layers, queries)
  local_keys = extended.local_keys
  if local_keys is not None and stream.tokens.shape[1] > 1:
    # One new token overwrites what has left its window; several would overwrite what the first of them still see.
    local_keys = queries.after(cache.local_keys, _joined)
  return Context(queries, extended.keys, local_keys, length=cache.length, visibility=visibility)


def _in_order(slots_BxS, new_BxL, length):
  """Slots of which `length` are written, with new values behind those."""
  return jax.lax.dynamic_update_slice_in_dim(slots_BxS, new_BxL.astype(slots_BxS.dtype), length, axis=1)


def _in_turn(slots_BxS, new_BxL, length):
  """Slots that keep the latest: value number n, of which `length` were written before, stands in slot n modulo S."""
  slots, new = slots_BxS.shape[1], new_BxL.shape[1]
  if new == 1:
    return _in_order(slots_BxS, new_BxL, length % slots)
  kept = min(new, slots)
  index = (length + new - kept + jnp.arange(kept)) % slots
  return slots_BxS.at[:, index].set(new_BxL[:, -kept:].astype(slots_BxS.dtype), unique_indices=True)


def _joined(slots_BxS, new_BxL):
  return jnp.concatenate([slots_BxS, new_BxL.astype(slots_BxS.dtype)], axis=1)
