"""Attention with many, grouped or one key head. L queries, S keys, D embed, H heads, G kv_heads, K head_dim."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from model import layers, relative
from model import positions as pos
from model.attend import attend
from pallas_kernels import probabilities
from parallel import axes as ax

BIASES = ('model', 'none', 'qkv', 'all')


class Attention(layers.Module):
  """Projections, relative positions and the attention core (Vaswani et al. 2017; Ainslie et al. 2023 for groups).

  Args:
    window: tokens that a token sees, itself included, to either side; 0 = all.
    positions: how the places of queries and keys act on the logits, see `model.positions`; 'none' across stacks.
  """

  def __init__(self, scope, model_config, window: int = 0, positions: str = 'none', *, rngs):
    attention_config = model_config.attention
    self.scope, self.window, self.positions = scope, window, positions
    self.num_heads = model_config.num_heads
    self.dropout_rate = attention_config.dropout_rate
    self.implementation, self.exchange = attention_config.implementation, attention_config.context_parallel
    embed, head_dim = model_config.embed_dim, model_config.head_dim
    self.interleaved = model_config.rope.interleaved
    self.scale = attention_config.scale or head_dim**-0.5
    self.softcap = attention_config.softcap or None
    bias_in, bias_out = biases(model_config)
    inner, outer = (embed,), (ax.EMBED,)

    def projection(name, heads, axis):
      shape, axes = (heads, head_dim), (axis, ax.HEAD_DIM)
      return layers.Linear(name, model_config, inner, outer, shape, axes, bias=bias_in, rngs=rngs)

    self.query = projection('query', model_config.num_heads, ax.HEADS)
    self.key = projection('key', model_config.num_kv_heads, ax.KV_HEADS)
    self.value = projection('value', model_config.num_kv_heads, ax.KV_HEADS)
    shape, axes = (model_config.num_heads, head_dim), (ax.HEADS, ax.HEAD_DIM)
    self.out = layers.Linear('out', model_config, shape, axes, inner, outer, bias=bias_out, residual=True, rngs=rngs)

    def head_norm(name):
      return layers.rms_norm(name, model_config, head_dim, ax.HEAD_DIM) if attention_config.qk_norm else None

    self.query_norm, self.key_norm = head_norm('query_norm'), head_norm('key_norm')
    self.sinks = nnx.Param(jnp.zeros(model_config.num_heads), axes=(ax.HEADS,)) if attention_config.sinks else None
    self.relative = relative.TransformerXL('relative', model_config, rngs=rngs) if positions == 'xlnet' else None
    is_shaw = positions == 'shaw'
    self.relative_key = relative.ClippedKeys('relative_key', model_config, rngs=rngs) if is_shaw else None
    self.relative_value = relative.ClippedValues('relative_value', model_config, rngs=rngs) if is_shaw else None

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
    rotation = context.rotations[self.window > 0]
    q = self._placed(by_heads(self.query(x_q_BxLxD)), self.query_norm, rotation)
    if x_kv_BxSxD is None:
      k, v = cache
    else:
      k, v = by_heads(self.key(x_kv_BxSxD), ax.KV_HEADS), by_heads(self.value(x_kv_BxSxD), ax.KV_HEADS)
      new = self._placed(k, self.key_norm, rotation), v
      (k, v), cache = context.remember(new, cache, self.window)
    spec = context.spec(window=self.window, dropout_rate=self.dropout_rate, key=key)
    q, spec = self._placed_apart(q, k.shape[1], context, spec)
    attended = self._attend(q, k, v, spec, context)
    return self.out(by_heads(attended)), cache

  def _placed(self, x, norm, rotation):
    if norm is not None:
      x = norm(x)
    return x if rotation is None else turned(x, rotation, self.interleaved)

  def _placed_apart(self, q, keys, context, spec):
    """The queries, and the spec with what distances and heads of their own do to the logits."""
    changes = {'scale': self.scale, 'softcap': self.softcap}
    if self.sinks is not None:
      changes['sinks'] = self.sinks[...]
    if self.positions == 'alibi':
      changes['alibi_slopes'] = jnp.asarray(pos.alibi_slopes(self.num_heads))
    if self.relative_key is not None:
      changes['bias'] = self.scale * self.relative_key(q, keys, context.first)
    if self.relative is not None:
      bias, q = self.relative(q, keys, context.first, context.targets, context.token_types)
      changes['bias'] = self.scale * bias
    return q, dataclasses.replace(spec, **changes)

  def _attend(self, q, k, v, spec, context):
    if self.relative_value is None:
      return attend(q, k, v, spec, self.implementation, self.exchange, context.distances)
    attended, lse = attend(q, k, v, spec, self.implementation, self.exchange, return_lse=True)
    return attended + self.relative_value(probabilities(q, k, spec, lse), context.first)


def biases(model_config) -> tuple[bool, bool]:
  """Whether queries, keys and values have a bias, and whether the output has."""
  by_name = {'model': (model_config.use_bias,) * 2, 'none': (False, False), 'qkv': (True, False), 'all': (True, True)}
  return by_name[model_config.attention.bias]


def by_heads(x_BxLxHxK, axis=ax.HEADS):
  """Queries, keys, values or what is attended to, each device with its heads."""
  return ax.constrain(x_BxLxHxK, (ax.BATCH, ax.LENGTH, axis, ax.HEAD_DIM))


def turned(x, rotation, interleaved: bool):
  """Queries or keys, rotated."""
  with jax.named_scope('rotary'):
    return pos.rotate(x, rotation, interleaved)
