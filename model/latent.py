"""Multi-head latent attention (DeepSeek-AI 2024, DeepSeek-V2, section 2.1): keys and values are made from one narrow
vector a token, queries perhaps from another.

L queries, S keys, D embed, H heads, C rank, K width of queries and keys, R the rotated part of it, V width of values.
"""

import dataclasses

import jax.numpy as jnp

from model import layers
from model.attend import attend
from model.attention import biases, by_heads, turned
from parallel import axes as ax

_EPSILON = 1e-6  # of the norms of narrow vectors, whatever that of the residual stream


def rotary_width(model_config) -> int:
  """Of what rope turns in a head, all or a share of it: R, or without latents the head."""
  latent_config = model_config.attention.latent
  return latent_config.rotary_dim if latent_config.key_value_rank else model_config.head_dim


def cached_width(model_config) -> int:
  """Of the heads that the attention core and the cache see: the wider of keys and values."""
  return max(model_config.head_dim, model_config.attention.latent.value_dim)


class LatentAttention(layers.Module):
  """Self-attention whose keys and values come from a vector of rank C, with a norm of its own.

  Of the K dimensions of a query and a key only the last R are rotated, and that part of the key is one for all heads,
  projected from the residual stream beside the narrow vector ("decoupled"). Keys and values are formed in full, padded
  with zeros to one width, and kept so in a cache.

  Args:
    window: tokens that a token sees, itself included, to either side; 0 = all.
  """

  def __init__(self, scope, model_config, window: int = 0, *, rngs):
    attention_config = model_config.attention
    latent_config = attention_config.latent
    self.scope, self.window = scope, window
    self.dropout_rate = attention_config.dropout_rate
    self.implementation, self.exchange = attention_config.implementation, attention_config.context_parallel
    self.interleaved = model_config.rope.interleaved
    self.scale = attention_config.scale or model_config.head_dim**-0.5
    self.softcap = attention_config.softcap or None
    self.rank, self.rotary_dim = latent_config.key_value_rank, latent_config.rotary_dim
    self.fixed_dim = model_config.head_dim - self.rotary_dim
    self.value_dim = latent_config.value_dim or model_config.head_dim
    self.width = cached_width(model_config)
    embed, bias_in, bias_out = model_config.embed_dim, *biases(model_config)

    def down(name, rank):
      shape, axes = (embed,), (ax.EMBED,)
      return layers.Linear(name, model_config, shape, axes, (rank,), (ax.RANK,), bias=bias_in, rngs=rngs)

    def heads_from(name, inputs, axis, width):
      shape, axes = (model_config.num_heads, width), (ax.HEADS, ax.HEAD_DIM)
      return layers.Linear(name, model_config, (inputs,), (axis,), shape, axes, bias=False, rngs=rngs)

    rank, head_dim = latent_config.query_rank, model_config.head_dim
    self.query = None if rank else heads_from('query', embed, ax.EMBED, head_dim)
    self.query_down = down('query_down', rank) if rank else None
    self.query_down_norm = layers.RMSNorm('query_down_norm', rank, ax.RANK, _EPSILON) if rank else None
    self.query_up = heads_from('query_up', rank, ax.RANK, head_dim) if rank else None
    self.key_value_down = down('key_value_down', self.rank + self.rotary_dim)
    self.key_value_down_norm = layers.RMSNorm('key_value_down_norm', self.rank, ax.RANK, _EPSILON)
    self.key_value_up = heads_from('key_value_up', self.rank, ax.RANK, self.fixed_dim + self.value_dim)
    shape, axes = (model_config.num_heads, self.value_dim), (ax.HEADS, ax.HEAD_DIM)
    inner, outer = (embed,), (ax.EMBED,)
    self.out = layers.Linear('out', model_config, shape, axes, inner, outer, bias=bias_out, residual=True, rngs=rngs)

  def __call__(self, x_BxLxD, x_kv_BxSxD, context, key, cache):
    """As `Attention`, where queries and keys come from one stack."""
    rotation = context.rotations[self.window > 0]
    q = self._padded(self._queries(x_BxLxD, rotation))
    new = tuple(map(self._padded, self._keys_and_values(x_kv_BxSxD, rotation)))
    (k, v), cache = context.remember(new, cache, self.window)
    spec = context.spec(window=self.window, dropout_rate=self.dropout_rate, key=key)
    spec = dataclasses.replace(spec, scale=self.scale, softcap=self.softcap)
    attended = attend(q, k, v, spec, self.implementation, self.exchange, context.distances)
    return self.out(by_heads(attended[..., : self.value_dim])), cache

  def _queries(self, x_BxLxD, rotation):
    project, x = self.query, x_BxLxD
    if project is None:
      project, x = self.query_up, self.query_down_norm(self.query_down(x_BxLxD))
    fixed, rotary = jnp.split(by_heads(project(x)), [self.fixed_dim], axis=-1)
    return jnp.concatenate([fixed, turned(rotary, rotation, self.interleaved)], axis=-1)

  def _keys_and_values(self, x_BxSxD, rotation):
    narrow_BxSxC, rotary_BxSxR = jnp.split(self.key_value_down(x_BxSxD), [self.rank], axis=-1)
    up_BxSxHxK = by_heads(self.key_value_up(self.key_value_down_norm(narrow_BxSxC)))
    fixed, v = jnp.split(up_BxSxHxK, [self.fixed_dim], axis=-1)
    rotary = turned(rotary_BxSxR[:, :, None], rotation, self.interleaved)
    rotary = jnp.broadcast_to(rotary, (*fixed.shape[:-1], self.rotary_dim))
    return jnp.concatenate([fixed, rotary], axis=-1), v

  def _padded(self, x_BxSxHxK):
    return jnp.pad(x_BxSxHxK, [(0, 0)] * 3 + [(0, self.width - x_BxSxHxK.shape[-1])])
