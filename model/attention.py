"""Attention with many, grouped or one key head. L queries, S keys, D embed, H heads, G kv_heads, K head_dim."""

import dataclasses

import jax
import jax.numpy as jnp

from model import layers
from model import positions as pos
from pallas_kernels import AttentionSpec, attention
from parallel import axes as ax


class Attention(layers.Module):
  """Projections, rotary positions and the attention core (Vaswani et al. 2017; Ainslie et al. 2023 for groups)."""

  def __init__(self, scope, model_config, window: int = 0, *, rngs):
    self.scope = scope
    self.window = window
    self.dropout_rate = model_config.attention.dropout_rate
    self.implementation = model_config.attention.implementation
    embed, head_dim = model_config.embed_dim, model_config.head_dim

    def projection(name, heads, axis):
      return layers.Linear(name, model_config, (embed,), (ax.EMBED,), (heads, head_dim), (axis, ax.HEAD_DIM), rngs=rngs)

    self.query = projection('query', model_config.num_heads, ax.HEADS)
    self.key = projection('key', model_config.num_kv_heads, ax.KV_HEADS)
    self.value = projection('value', model_config.num_kv_heads, ax.KV_HEADS)
    self.out = layers.Linear(
      'out',
      model_config,
      (model_config.num_heads, head_dim),
      (ax.HEADS, ax.HEAD_DIM),
      (embed,),
      (ax.EMBED,),
      rngs=rngs,
      residual=True,
    )

    def head_norm(name):
      if not model_config.attention.qk_norm:
        return None
      return layers.RMSNorm(name, head_dim, ax.HEAD_DIM, model_config.norm_epsilon)

    self.query_norm, self.key_norm = head_norm('query_norm'), head_norm('key_norm')

  def __call__(self, x_q_BxLxD, x_kv_BxSxD, context, key, cache):
    """Returns what the queries attend to [B, L, D], and the cache with this call's keys and values in it.

    Args:
      x_q_BxLxD: where queries come from.
      x_kv_BxSxD: where keys and values come from: the same in self-attention, another stack's output in
        cross-attention; None = the cache holds them all already.
      context: `Context` of the call.
      key: PRNG key for dropout on the probabilities, or None.
      cache: (keys, values), each [B, S, G, K], or None.
    """
    q = _placed(self.query(x_q_BxLxD), self.query_norm, context.queries.rotation)
    if x_kv_BxSxD is None:
      k, v = cache
    else:
      k = _placed(self.key(x_kv_BxSxD), self.key_norm, context.keys.rotation)
      v = self.value(x_kv_BxSxD)
      if cache is not None:
        cache = k, v = tuple(
          jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), context.length, axis=1)
          for old, new in zip(cache, (k, v))
        )
    spec = context.spec(window=self.window, dropout_rate=self.dropout_rate, key=key)
    attended = attend(q, k, v, spec, self.implementation)
    return self.out(attended), cache


def _placed(x, norm, rotation):
  if norm is not None:
    x = norm(x)
  if rotation is not None:
    with jax.named_scope('rotary'):
      x = pos.rotate(x, rotation)
  return x


def attend(q_BxLxHxK, k_BxSxGxK, v_BxSxGxK, spec: AttentionSpec, implementation: str):
  """`attention` on each device's batch rows and heads; dropout is that of the whole call, however it is split."""
  queries, keys = (ax.BATCH, ax.LENGTH, ax.HEADS, ax.HEAD_DIM), (ax.BATCH, ax.LENGTH, ax.KV_HEADS, ax.HEAD_DIM)

  def on_device(q, k, v, spec):
    if spec.dropout_rate:
      zero = jnp.int32(0)
      first = (ax.offset(ax.BATCH, q.shape[0]), ax.offset(ax.HEADS, q.shape[2]), zero, zero)
      spec = dataclasses.replace(spec, dropout_offset=jnp.stack(first))
    return attention(q, k, v, spec, implementation=implementation)

  on_devices = ax.on_each_device(on_device, (queries, keys, keys, _spec_axes(spec)), queries)
  return on_devices(q_BxLxHxK, k_BxSxGxK, v_BxSxGxK, spec)


def _spec_axes(spec):
  """Logical axes of the arrays of a spec, in its place; those of length 1 broadcast and are whole on every device."""
  axes = dict.fromkeys(('q_segment_ids', 'kv_segment_ids', 'q_order', 'kv_order'), (ax.BATCH, ax.LENGTH))
  axes |= dict.fromkeys(('alibi_slopes', 'sinks'), (ax.HEADS,))
  if spec.bias is not None:
    names = (ax.BATCH, ax.HEADS, ax.LENGTH, ax.LENGTH)
    axes['bias'] = tuple(name if size > 1 else None for name, size in zip(names, spec.bias.shape))
  arrays = [field.name for field in dataclasses.fields(spec) if not field.metadata.get('static')]
  return dataclasses.replace(spec, **{name: axes.get(name) for name in arrays})
