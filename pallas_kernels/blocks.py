"""Which blocks of the [keys, queries] plane an attention call visits, and what happens to the logits in one of them.

Shapes in names as in blockwise.py.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pallas_kernels.dropout import keep_mask
from pallas_kernels.spec import AttentionSpec

_LONGEST_SINGLE_BLOCK = 512
_BLOCK = 256


@dataclasses.dataclass(frozen=True)
class Blocks:
  """Static plan: block sizes, and the pairs (query block, key block) to visit.

  `whole` pairs need no index mask; `partial` ones contain causal, window or length edges.
  """

  q_len: int
  kv_len: int
  q_block: int
  kv_block: int
  whole: tuple[tuple[int, int], ...]
  partial: tuple[tuple[int, int], ...]

  def each(self, visit, state):
    """Returns the state after `state = visit(masked, i, j, state)` for every pair."""
    for masked, pairs in ((False, self.whole), (True, self.partial)):
      if len(pairs) == 1:
        state = visit(masked, *pairs[0], state)
      elif pairs:
        table = jnp.asarray(pairs, jnp.int32)
        state = lax.fori_loop(
          0, len(pairs), lambda n, s, t=table, m=masked: visit(m, t[n, 0], t[n, 1], s), state
        )
    return state

  def pad(self, x, *, q=None, k=None, value=0):
    """Pads axis `q` (queries) and axis `k` (keys) of x to whole blocks."""
    widths = [(0, 0)] * x.ndim
    for axis, length, block in self._axes(q, k):
      if x.shape[axis] == length:
        widths[axis] = (0, -length % block)
    return x if all(high == 0 for _, high in widths) else jnp.pad(x, widths, constant_values=value)

  def cut(self, x, i=0, j=0, *, q=None, k=None):
    """Returns query block i along axis `q` and key block j along axis `k`; an axis of one block stays as it is."""
    for axis, index, block in self._indices(i, j, q, k):
      if x.shape[axis] > block:
        x = lax.dynamic_slice_in_dim(x, index * block, block, axis)
    return x

  def put(self, x, block, i=0, j=0, *, q=None, k=None):
    """Returns x with what `cut` returns replaced by `block`."""
    starts = [0] * x.ndim
    for axis, index, size in self._indices(i, j, q, k):
      if x.shape[axis] > size:
        starts[axis] = index * size
    return block if block.shape == x.shape else lax.dynamic_update_slice(x, block, starts)

  def add(self, x, block, i=0, j=0, *, q=None, k=None):
    """Returns x with `block` added to what `cut` returns."""
    return self.put(x, self.cut(x, i, j, q=q, k=k) + block, i, j, q=q, k=k)

  def _axes(self, q, k):
    axes = ((q, self.q_len, self.q_block), (k, self.kv_len, self.kv_block))
    return [axis for axis in axes if axis[0] is not None]

  def _indices(self, i, j, q, k):
    axes = ((q, i, self.q_block), (k, j, self.kv_block))
    return [axis for axis in axes if axis[0] is not None]


def plan(spec: AttentionSpec, q_len: int, kv_len: int) -> Blocks:
  """Returns the blocks to visit: those where indices alone leave something visible."""
  q_block, kv_block = _block(q_len), _block(kv_len)
  window = None if spec.q_order is not None else spec.window
  whole, partial = [], []
  for i in range(-(-q_len // q_block)):
    for j in range(-(-kv_len // kv_block)):
      q_low, k_low = i * q_block + kv_len - q_len, j * kv_block
      lowest, highest = q_low - (k_low + kv_block - 1), q_low + q_block - 1 - k_low
      if spec.causal and highest < 0 or window is not None and (highest <= -window or lowest >= window):
        continue
      inside = k_low + kv_block <= kv_len
      inside &= not spec.causal or lowest >= 0
      inside &= window is None or -window < lowest and highest < window
      (whole if inside else partial).append((i, j))
  return Blocks(q_len, kv_len, q_block, kv_block, tuple(whole), tuple(partial))


def _block(length):
  return length if length <= _LONGEST_SINGLE_BLOCK else _BLOCK


_AXES = {  # of the spec's arrays in keys-first layout: the axis of queries, the axis of keys
  'q_segment_ids': (1, None), 'kv_segment_ids': (None, 1), 'q_order': (1, None), 'kv_order': (None, 1), 'bias': (4, 2),
}


def pad_spec(blocks: Blocks, spec: AttentionSpec) -> AttentionSpec:
  """Pads the spec's arrays to whole blocks; padded keys are then invisible by their index."""
  arrays = {n: (getattr(spec, n), axes) for n, axes in _AXES.items() if getattr(spec, n) is not None}
  return dataclasses.replace(spec, **{n: blocks.pad(x, q=axes[0], k=axes[1]) for n, (x, axes) in arrays.items()})


@dataclasses.dataclass(frozen=True)
class Tile:
  """What the spec does to the logits of one block; arrays broadcast to [B, N, S, G, T]."""

  spec: AttentionSpec  # its arrays cut to this block
  masked: bool  # whether indices hide something here
  kv_len: int
  q_index: jax.Array  # [T], counted so that equal indices are the same token
  k_index: jax.Array  # [S]
  q_place: jax.Array  # [T], row counter of the dropout

  @classmethod
  def cut(cls, blocks: Blocks, spec: AttentionSpec, i, j, masked: bool):
    """Returns block (i, j) of a padded, keys-first spec."""
    arrays = {n: (getattr(spec, n), axes) for n, axes in _AXES.items() if getattr(spec, n) is not None}
    cut = {n: blocks.cut(x, i, j, q=axes[0], k=axes[1]) for n, (x, axes) in arrays.items()}
    q_place = i * blocks.q_block + jnp.arange(blocks.q_block)
    k_index = j * blocks.kv_block + jnp.arange(blocks.kv_block)
    q_index = q_place + blocks.kv_len - blocks.q_len
    return cls(dataclasses.replace(spec, **cut), masked, blocks.kv_len, q_index, k_index, q_place)

  def logits(self, scores):
    """Returns the logits before bias and mask (soft-capped) and after, from q.k [B, N, S, G, T]."""
    spec = self.spec
    capped = spec.scale * scores
    if spec.softcap is not None:
      capped = spec.softcap * jnp.tanh(capped / spec.softcap)
    logits = capped
    if spec.alibi_slopes is not None:
      logits -= spec.alibi_slopes.astype(logits.dtype)[:, None, :, None] * self.distance().astype(logits.dtype)
    if spec.bias is not None:
      logits += spec.bias.astype(logits.dtype)
    visible = self._visible()
    return capped, logits if visible is None else jnp.where(visible, logits, -jnp.inf)

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

  def _visible(self):
    spec, conditions = self.spec, []
    if self.masked:
      conditions.append(self.k_index[:, None, None] < self.kv_len)
      if spec.causal:
        conditions.append(self.q_index >= self.k_index[:, None, None])
    if spec.q_order is not None:
      conditions.append(self._offset() >= 0)
    if spec.window is not None and (self.masked or spec.q_order is not None):
      conditions.append(self.distance() < spec.window)
    if spec.q_segment_ids is not None:
      q_segment, k_segment = _queries(spec.q_segment_ids), _keys(spec.kv_segment_ids)
      conditions.append((q_segment == k_segment) & (q_segment != 0))
    return None if not conditions else jnp.asarray(_all(conditions))


def _queries(x):
  return x[:, None, None, None, :]


def _keys(x):
  return x[:, None, :, None, None]


def _all(conditions):
  result = conditions[0]
  for condition in conditions[1:]:
    result = result & condition
  return result
