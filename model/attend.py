"""The attention core on a mesh. B batch, L queries, S keys, H heads, G kv_heads, K head_dim."""

import dataclasses

import jax
import jax.numpy as jnp

from model.relative import Distances
from pallas_kernels import AttentionSpec, attention, attention_across
from parallel import axes as ax


def attend(
  q_BxLxHxK,
  k_BxSxGxK,
  v_BxSxGxK,
  spec: AttentionSpec,
  implementation: str,
  exchange: str,
  distances: Distances | None = None,
  return_lse: bool = False,
):
  """`attention` on each device's batch rows and heads, and over the devices that split the length.

  Dropout is that of the whole call, however it is split.

  Args:
    q_BxLxHxK, k_BxSxGxK, v_BxSxGxK, spec, implementation, return_lse: as for `attention`.
    exchange: how devices that split the length see each other's keys, see `ax.attention_exchange`.
    distances: bias by distance, where the length is split; or None.
  """
  group = q_BxLxHxK.shape[2] // k_BxSxGxK.shape[2]
  queries, keys = (ax.BATCH, ax.LENGTH, ax.HEADS, ax.HEAD_DIM), (ax.BATCH, ax.LENGTH, ax.KV_HEADS, ax.HEAD_DIM)

  def on_device(q, k, v, spec, distances):
    if spec.dropout_rate:
      zero = jnp.int32(0)
      first = (ax.offset(ax.BATCH, q.shape[0]), ax.offset(ax.HEADS, q.shape[2]), zero, zero)
      spec = dataclasses.replace(spec, dropout_offset=jnp.stack(first))
    k, v = (_needed_heads(x, q.shape[2], group) for x in (k, v))
    across = ax.attention_exchange(exchange)
    if across is None:
      return attention(q, k, v, spec, implementation=implementation, return_lse=return_lse)
    return attention_across(across, q, k, v, spec, distances, implementation=implementation, return_lse=return_lse)

  out_axes = (queries, queries[:3]) if return_lse else queries
  in_axes = (queries, keys, keys, _spec_axes(spec), (None, ax.HEADS))
  return ax.on_each_device(on_device, in_axes, out_axes)(q_BxLxHxK, k_BxSxGxK, v_BxSxGxK, spec, distances)


def _needed_heads(x_BxSxGxK, num_heads: int, group: int):
  """Of key heads that a device holds all of, those that its `num_heads` query heads read, `group` of them one."""
  if x_BxSxGxK.shape[2] * group == num_heads:
    return x_BxSxGxK
  first = ax.offset(ax.HEADS, num_heads)
  if group % num_heads == 0:
    return jax.lax.dynamic_slice_in_dim(x_BxSxGxK, first // group, 1, axis=2)
  return jnp.take(x_BxSxGxK, (first + jnp.arange(num_heads)) // group, axis=2)


def _spec_axes(spec):
  """Logical axes of the arrays of a spec, in its place; those of length 1 broadcast and are whole on every device, as
  is what is said of all tokens of a row, which device by device would have to go round with the keys."""
  axes = dict.fromkeys(('q_segment_ids', 'kv_segment_ids', 'q_order', 'kv_order'), (ax.BATCH, None))
  axes |= dict.fromkeys(('alibi_slopes', 'sinks'), (ax.HEADS,))
  if spec.bias is not None:
    names = (ax.BATCH, ax.HEADS, ax.LENGTH, None)
    axes['bias'] = tuple(name if size > 1 else None for name, size in zip(names, spec.bias.shape))
  arrays = [field.name for field in dataclasses.fields(spec) if not field.metadata.get('static')]
  return dataclasses.replace(spec, **{name: axes.get(name) for name in arrays})
