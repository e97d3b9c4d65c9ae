"""The logits of one tile of a Hopper kernel: which they are, and what the spec does to them."""

import dataclasses
import functools
import math
from typing import Any

import jax.numpy as jnp
from jax import lax

from pallas_kernels.dropout import keep_mask
from pallas_kernels.hopper.kernel import ROWS, Call

LOG2E = math.log2(math.e)


def tile_of_keys(arrays, smem, call, slot, warpgroup, batch, head, q_start, k_start):
  """The tile of a warpgroup's queries and a block of keys, with what `load_keys` brought."""
  bias = smem.bias.at[slot] if 'bias' in arrays else None
  return Tile(
    call,
    (ROWS, smem.k.shape[1]),
    0,
    batch,
    head,
    q_start,
    k_start,
    q_tokens=smem.q_tokens.at[warpgroup] if call.tokens else None,
    k_tokens=smem.kv_tokens.at[slot] if call.tokens else None,
    bias=bias.at[warpgroup] if bias is not None and len(bias.shape) == 3 else bias,
    **scalars(arrays, head),
  )


def scalars(arrays, head) -> dict:
  """The fields of a tile that are numbers, or hold some."""
  places = (('slope', 'alibi_slopes', head), ('seed', 'dropout_seed', 0))
  numbers = {name: arrays[key][place] for name, key, place in places if key in arrays}
  if 'dropout_offset' in arrays:
    numbers['offset'] = arrays['dropout_offset']
  return numbers


@dataclasses.dataclass(frozen=True)
class Tile:
  """The logits of a warpgroup: which they are, and what the spec does to them.

  Attributes:
    call: what is static.
    shape: of the tile.
    q_axis: axis of the queries, 0 or 1.
    batch, head: int32 scalars.
    q_start: place of the first query among the queries.
    k_start: place of the first key among the keys.
    q_tokens, k_tokens: int32 refs [len(call.tokens), length of the axis], or None.
    bias: ref, of the tile's shape or [keys], or None.
    slope: float32 scalar or None.
    seed: uint32 scalar or None.
    offset: int32 ref [4] or None.
  """

  call: Call
  shape: tuple[int, int]
  q_axis: int
  batch: Any
  head: Any
  q_start: Any
  k_start: Any
  q_tokens: Any = None
  k_tokens: Any = None
  bias: Any = None
  slope: Any = None
  seed: Any = None
  offset: Any = None

  @property
  def factor(self) -> float:
    """What the result of `logits` is still to be multiplied by to give logits in base 2."""
    return LOG2E * (self.call.spec.scale if self._plain else 1)

  @property
  def _plain(self):
    return self.call.spec.softcap is None and self.bias is None and self.slope is None

  def logits(self, scores, masked: bool):
    """Returns the logits up to `factor`, and the derivative of the soft-cap, () where there is none."""
    softcap = self.call.spec.softcap
    logits = scores if self._plain else scores * self.call.spec.scale
    slope = ()
    if softcap is not None:
      ratio = jnp.tanh(logits * (1 / softcap))
      logits, slope = softcap * ratio, 1 - ratio * ratio
    if self.slope is not None:
      logits = logits - self.slope * self.distance()
    if self.bias is not None:
      bias = self.bias[...].astype(jnp.float32)
      logits = logits + (bias if bias.ndim == 2 else self._spread(bias, 1 - self.q_axis))
    return (jnp.where(self._visible(), logits, -jnp.inf) if masked else logits), slope

  def loads_with_keys(self, masked: bool) -> bool:
    """Whether `logits` and `distance` load anything that came with the block of keys, and not products alone."""
    return self.bias is not None or bool(self.call.tokens) and (masked or self.slope is not None)

  def through_softcap(self, gradient, slope):
    """The gradient of scale * scores from that of the soft-capped logits."""
    return gradient if self.call.spec.softcap is None else gradient * slope

  def of_queries(self, x):
    """A vector of the queries as a tile."""
    return self._spread(x, self.q_axis)

  def distance(self):
    """How far query and key lie apart, float32."""
    return jnp.abs(self._offset()).astype(jnp.float32)

  def drop(self, x):
    """x with dropped places zeroed, and the others scaled up."""
    rate = self.call.spec.dropout_rate
    return jnp.where(self._kept, x * (1 / (1 - rate)), 0.0) if rate else x

  @functools.cached_property
  def _kept(self):
    fixed, lane = self._columns
    first = (self.batch, self.head, self.q_start, self.k_start)
    if self.offset is not None:  # read as late as here and added to scalars it takes the fewest registers
      first = tuple(place + self.offset[n] for n, place in enumerate(first))
    *plane, q_start, k_start = first
    starts = (q_start, k_start) if self.q_axis == 0 else (k_start, q_start)
    places = self._iota(0) + starts[0], fixed + (lane + starts[1])
    q_place, k_place = places if self.q_axis == 0 else places[::-1]
    return keep_mask(self.seed, self.call.spec.dropout_rate, None, *plane, q_place, k_place)

  def _spread(self, x, axis):
    return lax.broadcast_in_dim(x, self.shape, [axis])

  def _iota(self, axis):
    # Either way is right; compiled for sm_90a, this choice needs the fewest registers.
    if axis == 0 and self.q_axis == 1:
      return self._spread(lax.broadcasted_iota(jnp.int32, self.shape[:1], 0), 0)
    return lax.broadcasted_iota(jnp.int32, self.shape, axis)

  @property
  def _columns(self):
    """The columns as a sum of a part that is constant in each register of a thread and one that is the same in all.

    Of a product, a thread has the columns 8 i + 2 (lane % 4) + {0, 1}. Left whole, they would take a register each
    through the loop over blocks; so split, they become constants of the instructions that compare with them.
    """
    column = self._iota(1)
    return column & ~6, column & 6

  @property
  def _row(self):
    """How far the row's token is ahead of (queries) or behind (keys) the first of the columns' tokens, in indices."""
    ahead = self.q_start - self.k_start + (self.call.shapes.kv_len - self.call.shapes.q_len)
    return self._iota(0) + (ahead if self.q_axis == 0 else -ahead)

  def _tokens(self, name):
    place = self.call.tokens.index(name)
    return self._spread(self.q_tokens[place], self.q_axis), self._spread(self.k_tokens[place], 1 - self.q_axis)

  def _offset(self):
    if 'order' in self.call.tokens:
      q_order, k_order = self._tokens('order')
      return q_order - k_order
    fixed, lane = self._columns
    offset = (self._row - lane) - fixed
    return offset if self.q_axis == 0 else -offset

  def _in_band(self):
    """Whether the index of the query is less than `window` ahead of the key's, and not behind where causal."""
    spec, conditions = self.call.spec, []
    window = spec.window if 'order' not in self.call.tokens else None
    if not spec.causal and window is None:
      return conditions
    fixed, lane = self._columns
    row = self._row - lane
    if spec.causal:
      conditions.append(fixed <= row if self.q_axis == 0 else fixed >= row)
    if window is not None:
      conditions.append(fixed > row - window if self.q_axis == 0 else fixed < row + window)
    if window is not None and not spec.causal:
      conditions.append(fixed < row + window if self.q_axis == 0 else fixed > row - window)
    return conditions

  def _visible(self):
    conditions = self._in_band()
    if not self.call.spec.causal:  # where causal, no query that is there sees a key beyond kv_len
      last = self.call.shapes.kv_len - 1 - self.k_start
      fixed, lane = self._columns
      conditions.append(fixed <= last - lane if self.q_axis == 0 else self._iota(0) <= last)
    if 'order' in self.call.tokens:
      conditions.append(self._offset() >= 0)
      if self.call.spec.window is not None:
        conditions.append(self._offset() < self.call.spec.window)
    if 'segment_ids' in self.call.tokens:
      q_ids, k_ids = self._tokens('segment_ids')
      conditions.append(q_ids == k_ids)
    return functools.reduce(jnp.logical_and, conditions)
