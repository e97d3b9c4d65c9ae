"""What the spec of an attention says of some of the queries and some of the keys of a row. B batch."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax


@dataclasses.dataclass(frozen=True)
class Piece:
  """A run of queries and a run of keys, each of neighbouring tokens of a row.

  Attributes:
    spec: for these alone, without bias and sinks; where it was causal by index, by orders.
    q_start: place of the first query in its row, int32 scalar.
    q_len: number of queries.
    k_start: place of the first key in its row, int32 scalar.
    k_len: number of keys.
  """

  spec: object
  q_start: jax.Array
  q_len: int
  k_start: jax.Array
  k_len: int

  @classmethod
  def cut(cls, spec, batch: int, queries: tuple, keys: tuple, behind: int) -> 'Piece':
    """The piece of a spec whose segment ids and orders are those of whole rows.

    Args:
      spec: as `pallas_kernels.AttentionSpec`.
      batch: rows.
      queries: start and number.
      keys: start and number.
      behind: how many more keys than queries a row has; queries are the last of its tokens.
    """
    changes = {'causal': False, 'bias': None, 'sinks': None}
    for side, run in (('q', queries), ('kv', keys)):
      for name in (f'{side}_segment_ids', f'{side}_order'):
        if getattr(spec, name) is not None:
          changes[name] = lax.dynamic_slice_in_dim(getattr(spec, name), *run, axis=1)
    if spec.causal:
      places = lambda start, length: jnp.broadcast_to(start + jnp.arange(length, dtype=jnp.int32), (batch, length))
      changes |= {'q_order': behind + places(*queries), 'kv_order': places(*keys)}
    if spec.dropout_rate:
      changes['dropout_offset'] = further(spec.dropout_offset, query=queries[0], key=keys[0])
    spec = vary_alike(dataclasses.replace(spec, **changes))
    return cls(spec, *queries, *keys)

  def visible(self):
    """Whether a query may see a key, a bool scalar; False is never wrong."""
    spec, visible = self.spec, jnp.ones((1,), bool)
    if spec.q_order is not None:
      visible &= jnp.max(spec.q_order, axis=1) >= jnp.min(spec.kv_order, axis=1)
      if spec.window:
        visible &= jnp.min(spec.q_order, axis=1) - jnp.max(spec.kv_order, axis=1) < spec.window
    if spec.q_segment_ids is not None:
      (q_first, q_last), (k_first, k_last) = _segments(spec.q_segment_ids), _segments(spec.kv_segment_ids)
      visible &= (q_first <= k_last) & (k_first <= q_last)
    return jnp.any(visible)

  def bias(self, rows, distances):
    """What is added to the logits, of these keys, or None.

    Args:
      rows: [B or 1, H or 1, q_len or 1, keys of whole rows], or None.
      distances: bias by distance, see `Ring`; or None.
    """
    if rows is not None:
      return lax.dynamic_slice_in_dim(rows, self.k_start, self.k_len, axis=3)
    return None if distances is None else distances.bias(self.q_len, self.k_len, self.q_start - self.k_start)

  def with_bias(self, bias):
    """The spec with the bias that `bias` gave."""
    return dataclasses.replace(self.spec, bias=bias)


def _segments(ids):
  """The lowest and the highest segment of each row, padding aside."""
  return jnp.min(jnp.where(ids == 0, jnp.iinfo(jnp.int32).max, ids), axis=1), jnp.max(ids, axis=1)


def further(offset, *, head=0, query=0, key=0):
  """The `dropout_offset` of a part of a call, which begins there; None: the call is the whole."""
  start = jnp.stack([jnp.asarray(place, jnp.int32) for place in (0, head, query, key)])
  return start if offset is None else offset.astype(jnp.int32) + start


def with_gradients(spec, **gradients):
  """A spec that holds gradients: these, and None for its other arrays."""
  arrays = [field.name for field in dataclasses.fields(spec) if not field.metadata.get('static')]
  return dataclasses.replace(spec, **(dict.fromkeys(arrays) | gradients))


def vary_alike(tree, *others):
  """The tree with every array typed as differing over each mesh axis that any array of any argument does.

  Loops and functions with derivatives of their own need it inside `jax.shard_map`.
  """
  axes = frozenset().union(*(_varying(x) for x in jax.tree.leaves((tree, others))))

  def vary(x):
    missing = axes - _varying(x)
    return lax.pcast(x, tuple(missing), to='varying') if missing else x

  return jax.tree.map(vary, tree)


def _varying(x):
  return jax.typeof(x).manual_axis_type.varying
