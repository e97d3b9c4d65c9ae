"""Which parts of an attention call are computed one after the other, and what happens to the logits in one of them.

Shapes in names as in blockwise.py.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.dropout import keep_mask
from pallas_kernels.spec import AttentionSpec, Shapes

# Queries of a strip that takes all its visible keys at once, by the number of queries and keys up to which it is so.
_STRIPS = {512: 128, 1024: 256}
_BLOCK, _NARROW_BLOCK = 512, 128  # queries and keys of a block beyond that, at most, and where the window is narrow
_MULTIPLE = 32  # of the sizes of blocks
_TOGETHER = 512  # queries and keys up to which the whole batch and all heads are computed at once
_LOGITS = 2**20  # of one piece beyond that: few enough for the cache, and yet work for all cores; measured on 2


@dataclasses.dataclass(frozen=True)
class Box:
  """A part of the call: `sizes` along 'b' (batch), 'n' (kv heads), 'q' (queries) and 'k' (keys), from `starts` on.

  Arrays are cut and filled by naming their axes: `box.cut(x, b=0, q=3)`. An axis that is no longer than the box, as one
  of length 1 that broadcasts, stays as it is.
  """

  sizes: dict[str, int]
  starts: dict[str, int | jax.Array]
  masked: bool  # whether indices alone may hide something

  def cut(self, x, **axes):
    """Returns the part of x in the box."""
    sizes = list(x.shape)
    for name, axis in axes.items():
      sizes[axis] = min(sizes[axis], self.sizes[name])
    return x if tuple(sizes) == x.shape else lax.dynamic_slice(x, self._starts(x.shape, sizes, axes), sizes)

  def put(self, x, part, **axes):
    """Returns x with `part` at the box."""
    if x.shape == part.shape:
      return part
    return lax.dynamic_update_slice(x, part, self._starts(x.shape, part.shape, axes))

  def add(self, x, part, **axes):
    """Returns x with `part` added at the box."""
    return self.put(x, self.cut(x, **axes) + part, **axes)

  def _starts(self, shape, sizes, axes):
    starts = [0] * len(shape)
    for name, axis in axes.items():
      starts[axis] = self.starts[name] if sizes[axis] < shape[axis] else 0
    return starts


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

  Short calls: strips of queries, each with all its visible keys. Long ones: square blocks.

  Attributes:
    shapes: sizes of the call.
    padded_q_len, padded_kv_len: whole blocks of queries and keys.
    tiles: rectangles of the [queries, keys] plane.
    piecewise: whether batch and heads are visited in pieces too, as much at once as the cache holds.
  """

  shapes: Shapes
  padded_q_len: int
  padded_kv_len: int
  tiles: tuple[Tiles, ...]
  piecewise: bool

  @property
  def strips(self) -> bool:
    """Whether every query is visited at most once."""
    starts = [start for tiles in self.tiles for start, _ in tiles.starts]
    return len(set(starts)) == len(starts) == len(self.tiles)

  def visit(self, step, state):
    """Returns the state after `state = step(box, state)` for every part of the call."""
    for tiles in self.tiles:
      batch, kv_heads = self._together(tiles)
      sizes = {'b': batch, 'n': kv_heads, 'q': tiles.q_size, 'k': tiles.k_size}
      groups = self.shapes.kv_heads // kv_heads
      table = jnp.asarray(tiles.starts, jnp.int32)

      def visit_one(n, state, tiles=tiles, sizes=sizes, groups=groups, table=table):
        group, place = divmod(n, len(tiles.starts))
        q, k = tiles.starts[0] if len(tiles.starts) == 1 else table[place]
        starts = {'b': group // groups * sizes['b'], 'n': group % groups * sizes['n'], 'q': q, 'k': k}
        return step(Box(sizes, starts, tiles.masked), state)

      number = self.shapes.batch // batch * groups * len(tiles.starts)
      state = visit_one(0, state) if number == 1 else lax.fori_loop(0, number, visit_one, state)
    return state

  def _together(self, tiles):
    """How many batch entries and kv heads are computed at once."""
    shapes = self.shapes
    if not self.piecewise:
      return shapes.batch, shapes.kv_heads
    logits = tiles.q_size * tiles.k_size * (shapes.heads // shapes.kv_heads)
    kv_heads = _largest_divisor(shapes.kv_heads, _LOGITS // logits)
    return _largest_divisor(shapes.batch, _LOGITS // (logits * kv_heads)), kv_heads

  def pad(self, x, *, q=None, k=None, value=0):
    """Pads axis `q` (queries) and axis `k` (keys) of x; an axis of length 1 that broadcasts stays."""
    widths = [(0, 0)] * x.ndim
    shapes = self.shapes
    for axis, length, padded in ((q, shapes.q_len, self.padded_q_len), (k, shapes.kv_len, self.padded_kv_len)):
      if axis is not None and x.shape[axis] == length:
        widths[axis] = (0, padded - length)
    return jnp.pad(x, widths, constant_values=value) if any(high for _, high in widths) else x


def _largest_divisor(number, limit):
  return max(n for n in range(1, number + 1) if number % n == 0 and n <= max(1, limit))


def _block(length, largest):
  """The size of blocks of at most `largest` that leave the least to pad."""
  return min(length, _round_up(-(-length // -(-length // largest)), _MULTIPLE))


def _round_up(length, multiple):
  return -(-length // multiple) * multiple


def plan(spec: AttentionSpec, shapes: Shapes, piecewise: bool) -> Plan:
  """Returns what to visit: only where indices leave something visible.

  Args:
    spec: the call's; nothing but its static fields and which arrays there are is read.
    shapes: sizes of the call.
    piecewise: whether batch and heads may be visited in pieces, as `Plan.piecewise`, if that pays.
  """
  q_len, kv_len = shapes.q_len, shapes.kv_len
  piecewise = piecewise and max(q_len, kv_len) > _TOGETHER
  strip = next((queries for longest, queries in _STRIPS.items() if max(q_len, kv_len) <= longest), None)
  if strip is not None:
    q_size = strip if spec.causal or spec.window is not None else q_len
    tiles = []
    for q_start in range(0, q_len, q_size):
      size = min(q_size, q_len - q_start)
      k_start, k_end = _visible_keys(spec, q_start + kv_len - q_len, size, kv_len)
      if k_start < k_end:
        masked = not _all_visible(spec, q_start + kv_len - q_len, size, k_start, k_end - k_start)
        tiles.append(Tiles(size, k_end - k_start, masked, ((q_start, k_start),)))
    return Plan(shapes, q_len, kv_len, tuple(tiles), piecewise)
  window = _window(spec)
  largest = _BLOCK if window is None else min(_BLOCK, max(_NARROW_BLOCK, _round_up(window, _MULTIPLE)))
  q_size, k_size = (_block(length, largest) for length in (q_len, kv_len))
  found = {False: [], True: []}
  for q_start in range(0, q_len, q_size):
    k_start, k_end = _visible_keys(spec, q_start + kv_len - q_len, q_size, kv_len)
    for k in range(k_start // k_size * k_size, k_end, k_size):
      whole = k + k_size <= kv_len and _all_visible(spec, q_start + kv_len - q_len, q_size, k, k_size)
      found[not whole].append((q_start, k))
  tiles = tuple(Tiles(q_size, k_size, masked, tuple(starts)) for masked, starts in found.items() if starts)
  return Plan(shapes, _round_up(q_len, q_size), _round_up(kv_len, k_size), tiles, piecewise)


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


AXES = {  # of the spec's arrays in keys-first layout, as `Box` names them
  'q_segment_ids': {'b': 0, 'q': 1},
  'kv_segment_ids': {'b': 0, 'k': 1},
  'q_order': {'b': 0, 'q': 1},
  'kv_order': {'b': 0, 'k': 1},
  'alibi_slopes': {'n': 0},
  'bias': {'b': 0, 'n': 1, 'k': 2, 'q': 4},
}


def pad_spec(whole: Plan, spec: AttentionSpec) -> AttentionSpec:
  """Pads the spec's arrays as the plan asks; padded keys are then invisible by their index."""
  return _map_arrays(spec, lambda x, axes: whole.pad(x, **{name: axes[name] for name in 'qk' if name in axes}))


def _map_arrays(spec, change):
  arrays = {name: getattr(spec, name) for name in AXES if getattr(spec, name) is not None}
  return dataclasses.replace(spec, **{name: change(x, AXES[name]) for name, x in arrays.items()})


@dataclasses.dataclass(frozen=True)
class Tile:
  """What the spec does to the logits in one box; arrays broadcast to [B, N, S, G, T]."""

  spec: AttentionSpec  # its arrays cut to the box
  shapes: Shapes  # of the whole call
  box: Box

  @classmethod
  def cut(cls, shapes: Shapes, spec: AttentionSpec, box: Box):
    """Returns what is in the box of a padded, keys-first spec."""
    return cls(_map_arrays(spec, lambda x, axes: box.cut(x, **axes)), shapes, box)

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
    places, groups = self._places, x.shape[3]
    batch = places['b'][:, None, None, None, None]
    heads = groups * places['n'][:, None, None, None] + jnp.arange(groups)[:, None]
    keys = places['k'][:, None, None]
    spec = self.spec
    keep = keep_mask(spec.dropout_seed, spec.dropout_rate, spec.dropout_offset, batch, heads, places['q'], keys)
    return jnp.where(keep, x * (1 / (1 - spec.dropout_rate)), 0)

  @property
  def _places(self):
    """Indices along each axis of the call, int32 vectors."""
    return {name: self.box.starts[name] + jnp.arange(size) for name, size in self.box.sizes.items()}

  def _ahead(self):
    """How far the query's index is ahead of the key's, [1, 1, S, 1, T]."""
    places, first = self._places, self.shapes.kv_len - self.shapes.q_len
    return (first + places['q'] - places['k'][:, None, None])[None, None]

  def _offset(self):
    """How far the query is ahead of the key, [B or 1, 1, S, 1, T]."""
    return self._ahead() if self.spec.q_order is None else _queries(self.spec.q_order) - _keys(self.spec.kv_order)

  def _conditions(self):
    spec, conditions = self.spec, []
    if self.box.masked and spec.causal:
      conditions.append(self._ahead() >= 0)
    elif self.box.masked:
      conditions.append(self._places['k'][:, None, None] < self.shapes.kv_len)
    if spec.q_order is not None:
      conditions.append(self._offset() >= 0)
    if spec.window is not None and (self.box.masked or spec.q_order is not None):
      conditions.append(self.distance() < spec.window)
    if spec.q_segment_ids is not None:
      q_segment, k_segment = _queries(spec.q_segment_ids), _keys(spec.kv_segment_ids)
      conditions.append((q_segment == k_segment) & (q_segment != 0))
    return conditions


def _queries(x):
  return x[:, None, None, None, :]


def _keys(x):
  return x[:, None, :, None, None]
