"""Which parts of the [keys, queries] plane an attention call visits, and what happens to the logits in one of them.

Shapes in names as in blockwise.py.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.dropout import keep_mask
from pallas_kernels.spec import AttentionSpec

_STRIP = 128  # queries of a strip that takes all its visible keys at once
_LONGEST_STRIPS = 512  # queries or keys up to which strips are used
_BLOCK = 128  # queries and keys of a block beyond that


@dataclasses.dataclass(frozen=True)
class Tiles:
  """Rectangles of one size, starting at (query, key) in `starts`; `masked` where indices alone may hide something."""

  q_size: int
  k_size: int
  masked: bool
  starts: tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class Plan:
  """What an attention call visits, from static facts alone.

  Short calls: strips of queries, each with all its visible keys. Long ones: square blocks, in loops.
  """

  q_len: int
  kv_len: int
  padded_q_len: int
  padded_kv_len: int
  tiles: tuple[Tiles, ...]

  @property
  def strips(self) -> bool:
    """Whether every query is visited at most once, outside of any loop."""
    starts = [start for tiles in self.tiles for start, _ in tiles.starts]
    return len(set(starts)) == len(starts) == len(self.tiles)

  def visit(self, step, state):
    """Returns the state after `state = step(tiles, q_start, k_start, state)` for every rectangle."""
    for tiles in self.tiles:
      if len(tiles.starts) == 1:
        state = step(tiles, *tiles.starts[0], state)
      else:
        table = jnp.asarray(tiles.starts, jnp.int32)
        state = lax.fori_loop(
          0, len(tiles.starts), lambda n, state, tiles=tiles, table=table: step(tiles, *table[n], state), state
        )
    return state

  def pad(self, x, *, q=None, k=None, value=0):
    """Pads axis `q` (queries) and axis `k` (keys) of x; an axis of length 1 that broadcasts stays."""
    widths = [(0, 0)] * x.ndim
    for axis, length, padded in ((q, self.q_len, self.padded_q_len), (k, self.kv_len, self.padded_kv_len)):
      if axis is not None and x.shape[axis] == length:
        widths[axis] = (0, padded - length)
    return jnp.pad(x, widths, constant_values=value) if any(high for _, high in widths) else x


def plan(spec: AttentionSpec, q_len: int, kv_len: int) -> Plan:
  """Returns what to visit: only where indices leave something visible."""
  if kv_len <= _LONGEST_STRIPS and q_len <= _LONGEST_STRIPS:
    q_size = _STRIP if spec.causal or spec.window is not None else q_len
    tiles = []
    for q_start in range(0, q_len, q_size):
      size = min(q_size, q_len - q_start)
      k_start, k_end = _visible_keys(spec, q_start + kv_len - q_len, size, kv_len)
      if k_start < k_end:
        masked = not _all_visible(spec, q_start + kv_len - q_len, size, k_start, k_end - k_start)
        tiles.append(Tiles(size, k_end - k_start, masked, ((q_start, k_start),)))
    return Plan(q_len, kv_len, q_len, kv_len, tuple(tiles))
  q_size, k_size = min(_BLOCK, q_len), min(_BLOCK, kv_len)
  found = {False: [], True: []}
  for q_start in range(0, q_len, q_size):
    k_start, k_end = _visible_keys(spec, q_start + kv_len - q_len, q_size, kv_len)
    for k in range(k_start // k_size * k_size, k_end, k_size):
      whole = k + k_size <= kv_len and _all_visible(spec, q_start + kv_len - q_len, q_size, k, k_size)
      found[not whole].append((q_start, k))
  tiles = tuple(Tiles(q_size, k_size, masked, tuple(starts)) for masked, starts in found.items() if starts)
  return Plan(q_len, kv_len, -(-q_len // q_size) * q_size, -(-kv_len // k_size) * k_size, tiles)


def _window(spec):
  return None if spec.q_order is not None else spec.window  # with orders, distance is not known from indices


def _visible_keys(spec, q_start, q_size, kv_len):
  """The range of key indices that some query of [q_start, q_start + q_size) may see."""
  window = _window(spec)
  start = 0 if window is None else max(0, q_start - window + 1)
  end = kv_len if window is None else min(kv_len, q_start + q_size - 1 + window)
  return start, max(0, min(end, q_start + q_size) if spec.causal else end)


def _all_visible(spec, q_start, q_size, k_start, k_size):
  """Whether indices hide none of these keys from any of these queries."""
  window = _window(spec)
  lowest, highest = q_start - (k_start + k_size - 1), q_start + q_size - 1 - k_start
  return (not spec.causal or lowest >= 0) and (window is None or -window < lowest and highest < window)


def cut(x, axis: int, start, size: int):
  """Returns [start, start + size) of an axis; an axis that is no longer than that stays as it is."""
  if x.shape[axis] <= size:
    return x
  return lax.dynamic_slice_in_dim(x, start, size, axis)


def put(x, block, axis: int, start):
  """Returns x with `block` at `start` of an axis."""
  return block if x.shape == block.shape else lax.dynamic_update_slice_in_dim(x, block, start, axis)


def add(x, block, axis: int, start):
  """Returns x with `block` added at `start` of an axis."""
  return put(x, cut(x, axis, start, block.shape[axis]) + block, axis, start)


_AXES = {  # of the spec's arrays in keys-first layout: the axis of queries, the axis of keys
  'q_segment_ids': (1, None), 'kv_segment_ids': (None, 1), 'q_order': (1, None), 'kv_order': (None, 1), 'bias': (4, 2),
}


def pad_spec(whole: Plan, spec: AttentionSpec) -> AttentionSpec:
  """Pads the spec's arrays as the plan asks; padded keys are then invisible by their index."""
  return _map_arrays(spec, lambda x, q, k: whole.pad(x, q=q, k=k))


def _map_arrays(spec, change):
  arrays = {name: getattr(spec, name) for name in _AXES if getattr(spec, name) is not None}
  return dataclasses.replace(spec, **{name: change(x, *_AXES[name]) for name, x in arrays.items()})


@dataclasses.dataclass(frozen=True)
class Tile:
  """What the spec does to the logits of one rectangle; arrays broadcast to [B, N, S, G, T]."""

  spec: AttentionSpec  # its arrays cut to this rectangle
  masked: bool
  kv_len: int
  q_place: jax.Array  # [T], index among the queries
  q_index: jax.Array  # [T], index of the same token among the keys
  k_index: jax.Array  # [S]

  @classmethod
  def cut(cls, whole: Plan, spec: AttentionSpec, tiles: Tiles, q_start, k_start):
    """Returns the rectangle at (q_start, k_start) of a padded, keys-first spec."""
    def change(x, q, k):
      x = x if q is None else cut(x, q, q_start, tiles.q_size)
      return x if k is None else cut(x, k, k_start, tiles.k_size)
    q_place = q_start + jnp.arange(tiles.q_size)
    q_index = q_place + (whole.kv_len - whole.q_len)
    return cls(_map_arrays(spec, change), tiles.masked, whole.kv_len, q_place, q_index,
               k_start + jnp.arange(tiles.k_size))

  def logits(self, scores):
    """Returns the logits from q.k: soft-capped alone, and with bias and mask."""
    spec = self.spec
    capped = spec.scale * scores
    if spec.softcap is not None:
      capped = spec.softcap * jnp.tanh(capped / spec.softcap)
    logits = capped
    if spec.alibi_slopes is not None:
      logits -= spec.alibi_slopes.astype(logits.dtype)[:, None, :, None] * self.distance().astype(logits.dtype)
    if spec.bias is not None:
      logits += spec.bias.astype(logits.dtype)
    conditions = self._conditions()
    for condition in conditions[1:]:
      conditions[0] = conditions[0] & condition
    return capped, jnp.where(conditions[0], logits, -jnp.inf) if conditions else logits

  def distance(self):
    """How far query and key lie apart, [B or 1, 1, S, 1, T]."""
    return jnp.abs(self._offset())

  def drop(self, x):
    """Returns x with dropped places zeroed and the others scaled up."""
    if not self.spec.dropout_rate:
      return x
    batch, kv_heads, groups = x.shape[0], x.shape[1], x.shape[3]
    heads = jnp.arange(kv_heads * groups).reshape(kv_heads, 1, groups, 1)
    keep = keep_mask(
      self.spec.dropout_seed, self.spec.dropout_rate,
      jnp.arange(batch).reshape(batch, 1, 1, 1, 1), heads, self.q_place, self.k_index[:, None, None],
    )
    return jnp.where(keep, x * (1 / (1 - self.spec.dropout_rate)), 0)

  def _offset(self):
    if self.spec.q_order is None:
      return (self.q_index - self.k_index[:, None, None])[None, None]
    return _queries(self.spec.q_order) - _keys(self.spec.kv_order)

  def _conditions(self):
    spec, conditions = self.spec, []
    if self.masked:
      conditions.append(self.k_index[:, None, None] <= (self.q_index if spec.causal else self.kv_len - 1))
    if spec.q_order is not None:
      conditions.append(self._offset() >= 0)
    if spec.window is not None and (self.masked or spec.q_order is not None):
      conditions.append(self.distance() < spec.window)
    if spec.q_segment_ids is not None:
      q_segment, k_segment = _queries(spec.q_segment_ids), _keys(spec.kv_segment_ids)
      conditions.append((q_segment == k_segment) & (q_segment != 0))
    return conditions


def _queries(x):
  return x[:, None, None, None, :]


def _keys(x):
  return x[:, None, :, None, None]
