"""Self-attention with many, grouped or one key head. L length, D embed, H heads, G kv_heads, K head_dim."""

import dataclasses

import jax
import jax.numpy as jnp

from model import layers
from model import positions as pos
from pallas_kernels import AttentionSpec, attention
from parallel import axes as ax


class SelfAttention(layers.Module):
  """Projections, rotary positions and the attention core (Vaswani et al. 2017; Ainslie et al. 2023 for groups)."""

  def __init__(self, scope, model_config, *, rngs):
    self.scope = scope
    self.dropout_rate = model_config.attention_dropout_rate
    self.implementation = model_config.attention_implementation
    embed, head_dim = model_config.embed_dim, model_config.head_dim

    def projection(name, heads, axis):
      return layers.Linear(name, model_config, (embed,), (ax.EMBED,), (heads, head_dim), (axis, ax.HEAD_DIM), rngs=rngs)

    self.query = projection('query', model_config.num_heads, ax.HEADS)
    self.key = projection('key', model_config.num_kv_heads, ax.KV_HEADS)
    self.value = projection('value', model_config.num_kv_heads, ax.KV_HEADS)
    self.out = layers.Linear('out', model_config, (model_config.num_heads, head_dim), (ax.HEADS, ax.HEAD_DIM),
                             (embed,), (ax.EMBED,), rngs=rngs, residual=True)

    def head_norm(name):
      return layers.RMSNorm(name, head_dim, ax.HEAD_DIM, model_config.norm_epsilon) if model_config.qk_norm else None

    self.query_norm, self.key_norm = head_norm('query_norm'), head_norm('key_norm')

  def __call__(self, x_BxLxD, context, key, cache):
    """Returns the attended values [B, L, D] and the cache with this call's keys and values in it.

    Args:
      x_BxLxD: the normed residual stream.
      context: `Context` of the call: segments, positions, rotation.
      key: PRNG key for dropout on the probabilities, or None.
      cache: (keys, values), each [B, S, G, K], or None.
    """
    q, k, v = self.query(x_BxLxD), self.key(x_BxLxD), self.value(x_BxLxD)
    if self.query_norm is not None:
      q, k = self.query_norm(q), self.key_norm(k)
    if context.rotation is not None:
      with jax.named_scope('rotary'):
        q, k = pos.rotate(q, context.rotation), pos.rotate(k, context.rotation)
    if cache is not None:
      cache = tuple(jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), context.cache_length, axis=1)
                    for old, new in zip(cache, (k, v)))
      k, v = cache
    attended = attend(q, k, v, context.spec(self.dropout_rate, key), self.implementation)
    return self.out(attended), cache


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


class Context:
  """What every layer of one call shares: who sees whom, rotary angles, and where the cache continues."""

  def __init__(self, positions_BxL, segment_ids_BxL, rotation=None, cache=None):
    self.positions, self.segment_ids, self.rotation = positions_BxL, segment_ids_BxL, rotation
    self.cache_length = None
    if cache is not None:
      self.cache_length = cache['length']
      self.kv_segment_ids = _append(cache['segment_ids'], segment_ids_BxL, self.cache_length)
      self.kv_positions = _append(cache['positions'], positions_BxL, self.cache_length)

  def spec(self, dropout_rate: float, key) -> AttentionSpec:
    """The mask: causal by index without a cache, causal by position against the cache's slots with one."""
    if key is None or dropout_rate == 0.0:
      dropout = {}
    else:
      dropout = {'dropout_rate': dropout_rate, 'dropout_seed': jax.random.bits(key, (), jnp.uint32)}
    if self.cache_length is None:
      return AttentionSpec(causal=True, q_segment_ids=self.segment_ids, kv_segment_ids=self.segment_ids, **dropout)
    return AttentionSpec(q_segment_ids=self.segment_ids, kv_segment_ids=self.kv_segment_ids,
                         q_order=self.positions, kv_order=self.kv_positions, **dropout)


def _append(slots_BxS, new_BxL, length):
  return jax.lax.dynamic_update_slice_in_dim(slots_BxS, new_BxL.astype(slots_BxS.dtype), length, axis=1)
