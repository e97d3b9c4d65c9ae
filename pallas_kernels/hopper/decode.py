"""Attention of few queries on Hopper, as in decoding, through the kernels for many.

The query heads that share a key head become queries of one head, which fill the tile of a warpgroup, and parts of the
keys become rows of the batch, so that every multiprocessor has something to read; the parts merge by their lse
(Dao et al. 2023, Flash-Decoding).
"""

import dataclasses

import jax
import jax.numpy as jnp

from pallas_kernels.spec import AttentionSpec

_LONGEST = 8  # queries
_BLOCKS = 132  # of threads: one for each multiprocessor of an H100 or H200, whose registers it fills
_SHORTEST_PART = 256  # keys


def serves(spec: AttentionSpec, q_len: int) -> bool:
  """Whether the queries are few, and the spec says the same of all heads and, of indices, no more than orders can."""
  alike = spec.bias is None and spec.alibi_slopes is None and not spec.dropout_rate
  return (
    q_len <= _LONGEST
    and alike
    and (not spec.causal if spec.q_order is not None else (spec.causal or spec.window is None))
  )


def attend(core, q, k, v, spec: AttentionSpec):
  """Returns the output, like q, and lse [batch, q_len, heads], of `core(q, k, v, spec)` that computes both."""
  batch, q_len, heads, head_dim = q.shape
  kv_len, kv_heads = k.shape[1:3]
  parts, groups = _parts(batch * kv_heads, kv_len), heads // kv_heads
  rows = lambda x: jnp.repeat(jnp.repeat(x, groups, axis=1), parts, axis=0)
  folded = jnp.swapaxes(q.reshape(batch, q_len, kv_heads, groups, head_dim), 2, 3)
  folded = jnp.repeat(folded.reshape(batch, q_len * groups, kv_heads, head_dim), parts, axis=0)
  k, v = (x.reshape(batch * parts, kv_len // parts, kv_heads, head_dim) for x in (k, v))
  order = spec.q_order, spec.kv_order
  if spec.causal:
    order = jnp.arange(kv_len - q_len, kv_len)[None], jnp.arange(kv_len)[None]
    order = tuple(jnp.broadcast_to(x, (batch, x.shape[1])) for x in order)
  changes = {'causal': False, 'sinks': None}
  for name, (queries, keys) in {'order': order, 'segment_ids': (spec.q_segment_ids, spec.kv_segment_ids)}.items():
    if queries is not None:
      changes |= {f'q_{name}': rows(queries), f'kv_{name}': keys.reshape(batch * parts, kv_len // parts)}
  out, lse = core(folded, k, v, dataclasses.replace(spec, **changes))
  return _merge(out, lse, spec.sinks, (batch, parts, q_len, groups, kv_heads))


def _merge(out, lse, sinks, sizes):
  """Merges parts of the keys: out [batch * parts, q_len * groups, kv_heads, head_dim], and lse without the last."""
  batch, parts, q_len, groups, kv_heads = sizes
  heads = lambda x: jnp.swapaxes(x, 3, 4).reshape(batch, parts, q_len, kv_heads * groups, *x.shape[5:])
  parted, out = heads(lse.reshape(sizes)), heads(out.reshape(*sizes, out.shape[-1]))
  whole = _logsumexp(parted, sinks)
  weights = jnp.where(parted > -jnp.inf, jnp.exp(parted - jnp.where(whole > -jnp.inf, whole, 0)[:, None]), 0)
  return jnp.sum(weights[..., None] * out.astype(jnp.float32), axis=1).astype(out.dtype), whole


def _logsumexp(lse, sinks):
  """Of parts, axis 1, and of sinks; -inf with zero gradient where a query sees nothing."""
  if sinks is not None:
    sinks = jnp.broadcast_to(sinks.astype(jnp.float32), lse[:, :1].shape)
    lse = jnp.concatenate([lse, sinks], axis=1)
  sees = jnp.any(lse > -jnp.inf, axis=1)
  total = jax.nn.logsumexp(jnp.where(sees[:, None], lse, 0), axis=1)
  return jnp.where(sees, total, -jnp.inf)


def _parts(rows, kv_len):
  """Into how many equal parts of whole groups of 8 keys to split, for about a block of threads a multiprocessor."""
  wanted = max(1, min(_BLOCKS // rows, kv_len // _SHORTEST_PART))
  return next(n for n in range(wanted, 0, -1) if n == 1 or kv_len % (8 * n) == 0)
