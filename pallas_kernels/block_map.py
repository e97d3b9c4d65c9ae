"""Which blocks of the [queries, keys] plane an attention call has to visit, and in which of them it needs a mask."""

import jax.numpy as jnp
import numpy as np

from pallas_kernels.spec import AttentionSpec, Shapes

HIDDEN, PARTLY, WHOLLY = 0, 1, 2  # visible; ordered, so that of several conditions the least counts


def block_map(spec: AttentionSpec, shapes: Shapes, q_size: int, k_size: int):
  """Returns how far each block is visible, int32 [batch or 1, q_blocks, k_blocks].

  HIDDEN: no query sees a key; WHOLLY: every query sees every key; else PARTLY. Keys beyond kv_len are seen by nobody,
  queries beyond q_len are not there. HIDDEN and WHOLLY are never wrong; what segments and orders leave may be called
  PARTLY where a closer look at the values would say more.

  Args:
    spec: fields that narrow the mask.
    shapes: sizes of the call.
    q_size: queries of a block.
    k_size: keys of a block.

  Returns:
    What `index_map` does where indices alone decide; else [batch, ...], computed from segment ids and orders.
  """
  kinds = index_map(spec, shapes, q_size, k_size)
  if spec.q_order is not None:
    (q_lowest, q_highest), (k_lowest, k_highest) = _ranges(spec.q_order, q_size), _ranges(spec.kv_order, k_size)
    longest = np.inf if spec.window is None else spec.window - 1
    kinds = jnp.minimum(kinds, _kinds(_pairs(q_lowest, -k_highest), _pairs(q_highest, -k_lowest), 0, longest))
  if spec.q_segment_ids is not None:
    kinds = jnp.minimum(kinds, _segment_kinds(spec.q_segment_ids, spec.kv_segment_ids, q_size, k_size))
  return kinds if isinstance(kinds, np.ndarray) else kinds.astype(jnp.int32)


def index_map(spec: AttentionSpec, shapes: Shapes, q_size: int, k_size: int) -> np.ndarray:
  """Returns what indices say of each block, int32 [1, q_blocks, k_blocks], exactly; see `block_map`."""
  q_start, k_start = np.arange(0, shapes.q_len, q_size)[:, None], np.arange(0, shapes.kv_len, k_size)[None]
  q_last = np.minimum(q_start + q_size, shapes.q_len) - 1 + shapes.kv_len - shapes.q_len
  k_last = np.minimum(k_start + k_size, shapes.kv_len) - 1
  window = np.inf if spec.window is None or spec.q_order is not None else spec.window
  kinds = _kinds(
    q_start + shapes.kv_len - shapes.q_len - k_last, q_last - k_start, 0 if spec.causal else 1 - window, window - 1
  )
  ragged = k_start + k_size > shapes.kv_len
  return np.where(ragged, np.minimum(kinds, PARTLY), kinds).astype(np.int32)[None]


def visible_blocks(kinds, longest: int | None = None):
  """Lists, for every block of queries, the blocks of keys to visit; for those of keys, give the map transposed.

  Args:
    kinds: from `block_map`, [batch or 1, q_blocks, k_blocks].
    longest: length of the lists, at least the largest count; by default that count, for which `kinds` must be numpy.

  Returns:
    blocks, int32 [batch or 1, q_blocks, longest]: visible ones first, in order, the last one repeated to the end, so
    that a pipeline finds nothing new to fetch there (0 where none is visible); and how many are visible, int32
    [batch or 1, q_blocks].
  """
  xp = np if isinstance(kinds, np.ndarray) else jnp
  counts = (kinds > HIDDEN).sum(-1).astype(np.int32)
  longest = max(1, int(counts.max())) if longest is None else longest
  order = xp.argsort(kinds == HIDDEN, axis=-1, stable=True)[..., :longest]
  places = xp.minimum(np.arange(longest), xp.maximum(counts[..., None] - 1, 0))
  blocks = xp.where(counts[..., None] > 0, xp.take_along_axis(order, places, axis=-1), 0)
  return blocks.astype(np.int32), counts


def _kinds(lowest, highest, first, last):
  """Of blocks where distances run from lowest to highest, and those from `first` to `last` are visible."""
  xp = np if isinstance(lowest, np.ndarray) else jnp
  hidden, wholly = (highest < first) | (lowest > last), (lowest >= first) & (highest <= last)
  return xp.where(hidden, HIDDEN, xp.where(wholly, WHOLLY, PARTLY))


def _segment_kinds(q_ids, k_ids, q_size, k_size):
  overlap, single = [], []
  for ids, size in ((q_ids, q_size), (k_ids, k_size)):
    limits, ids = jnp.iinfo(jnp.int32), ids.astype(jnp.int32)
    lowest, highest = _ranges(ids, size)
    overlap.append(
      (_ranges(jnp.where(ids == 0, limits.max, ids), size)[0], _ranges(jnp.where(ids == 0, limits.min, ids), size)[1])
    )
    single.append(jnp.where(lowest == highest, lowest, 0))
  (q_lowest, q_highest), (k_lowest, k_highest) = overlap
  meet = (q_lowest[:, :, None] <= k_highest[:, None]) & (k_lowest[:, None] <= q_highest[:, :, None])
  wholly = (single[0][:, :, None] == single[1][:, None]) & (single[0][:, :, None] != 0)
  return jnp.where(wholly, WHOLLY, jnp.where(meet, PARTLY, HIDDEN))


def _ranges(x, size):
  """The least and the largest value of each block of x [batch, length], two [batch, blocks]."""
  x = jnp.pad(x.astype(jnp.int32), ((0, 0), (0, -x.shape[1] % size)), mode='edge').reshape(x.shape[0], -1, size)
  return jnp.min(x, axis=-1), jnp.max(x, axis=-1)


def _pairs(queries, keys):
  return queries[:, :, None] + keys[:, None]
