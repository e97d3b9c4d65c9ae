"""Attention over visible blocks only, with its own backward pass, in O(length) memory: production on CPU.

Everything is kept keys-first: logits are [keys, queries]. Then every large matrix product, forward and backward, is
a plain row-major one (a product that contracts the first axis of its left operand runs several times slower on a CPU)
and the softmax's sums run over the major axis, which vectorises; only arrays of [length, head_dim] are transposed.

Shapes in names: B batch, N kv heads, G query heads of a kv head, T queries, S keys, D head_dim.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.blocks import Tile, pad_spec, plan
from pallas_kernels.spec import AttentionSpec, Shapes


def supports(spec: AttentionSpec, shapes: Shapes, dtype, device: str) -> str:
  """Returns '': any call with floating-point inputs is served on any device; else why not."""
  del spec, shapes, device
  return '' if jnp.issubdtype(dtype, jnp.floating) else f'blockwise takes floating-point inputs, not {dtype}'


def attend(q, k, v, spec: AttentionSpec):
  """Returns the output [batch, q_len, heads, head_dim] in q's dtype and lse [batch, q_len, heads], float32 or float64."""
  batch, q_len, heads, head_dim = q.shape
  kv_heads = k.shape[2]
  groups = heads // kv_heads
  q_BxNxDxGxT = jnp.transpose(q.reshape(batch, q_len, kv_heads, groups, head_dim), (0, 2, 4, 3, 1))
  k_BxNxSxD, v_BxNxSxD = jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)
  out_BxNxDxGxT, lse_BxNxGxT = _attend(q_BxNxDxGxT, k_BxNxSxD, v_BxNxSxD, _keys_first(spec, kv_heads, groups, head_dim))
  out = jnp.transpose(out_BxNxDxGxT, (0, 4, 1, 3, 2)).reshape(q.shape)
  return out, jnp.transpose(lse_BxNxGxT, (0, 3, 1, 2)).reshape(batch, q_len, heads)


def _keys_first(spec, kv_heads, groups, head_dim):
  """The spec with its scale resolved, bias as [B, N, S, G, T] and slopes and sinks as [N, G]; 1s stay 1s."""
  changes = {'scale': head_dim ** -0.5 if spec.scale is None else spec.scale}
  for name in ('alibi_slopes', 'sinks'):
    if getattr(spec, name) is not None:
      changes[name] = getattr(spec, name).reshape(kv_heads, groups)
  if spec.bias is not None:
    split = (kv_heads, groups) if spec.bias.shape[1] > 1 else (1, 1)
    bias = spec.bias.reshape(spec.bias.shape[:1] + split + spec.bias.shape[2:])
    changes['bias'] = jnp.transpose(bias, (0, 1, 4, 2, 3))
  return dataclasses.replace(spec, **changes)


@jax.custom_vjp
def _attend(q, k, v, spec):
  return _forward(q, k, v, spec)


def _attend_fwd(q, k, v, spec):
  out, lse = _forward(q, k, v, spec)
  return (out, lse), (q, k, v, spec, out, lse)


def _attend_bwd(residuals, cotangents):
  return _backward(*residuals, *cotangents)


_attend.defvjp(_attend_fwd, _attend_bwd)


def _forward(q, k, v, spec):
  blocks = plan(spec, q.shape[4], k.shape[2])
  batch, kv_heads, head_dim, groups, _ = q.shape
  computed = jnp.promote_types(q.dtype, jnp.float32)
  q, v_BxNxDxS = blocks.pad(q, q=4), blocks.pad(jnp.swapaxes(v, 2, 3), k=3)
  k, padded = blocks.pad(k, k=2), pad_spec(blocks, spec)

  def visit(masked, i, j, state):
    tile = Tile.cut(blocks, padded, i, j, masked)
    _, logits = tile.logits(_dot(blocks.cut(k, j=j, k=2), blocks.cut(q, i, q=4), 3, 2))
    old_max, old_sum, old_out = (blocks.cut(x, i, q=x.ndim - 1) for x in state)
    new_max = jnp.maximum(old_max, jnp.max(logits, axis=2))
    shift = jnp.where(new_max == -jnp.inf, 0, new_max)
    rescale = jnp.exp(old_max - shift)
    p_BxNxSxGxT = jnp.exp(logits - shift[:, :, None])
    new_sum = old_sum * rescale + jnp.sum(p_BxNxSxGxT, axis=2)
    dropped = tile.drop(p_BxNxSxGxT).astype(q.dtype)
    new_out = old_out * rescale[:, :, None] + _dot(blocks.cut(v_BxNxDxS, j=j, k=3), dropped, 3, 2)
    new = (new_max, new_sum, new_out)
    return tuple(blocks.put(x, y, i, q=x.ndim - 1) for x, y in zip(state, new, strict=True))

  rows = (batch, kv_heads, groups, q.shape[4])
  state = (
    jnp.full(rows, -jnp.inf, computed), jnp.zeros(rows, computed),
    jnp.zeros((batch, kv_heads, head_dim, groups, q.shape[4]), computed),
  )
  maximum, total, out = (x[..., :blocks.q_len] for x in blocks.each(visit, state))
  out = jnp.where(total > 0, 1 / jnp.where(total > 0, total, 1), 0)[:, :, None] * out
  lse = jnp.where(total > 0, maximum + jnp.log(total), -jnp.inf)
  if spec.sinks is not None:
    with_sink = jnp.logaddexp(lse, spec.sinks.astype(computed)[None, :, :, None])
    out, lse = out * jnp.exp(lse - with_sink)[:, :, None], with_sink
  return out.astype(q.dtype), lse


def _backward(q, k, v, spec, out, lse, d_out, d_lse):
  blocks = plan(spec, q.shape[4], k.shape[2])
  dtype, computed = q.dtype, lse.dtype
  sees = lse > -jnp.inf
  # A row that sees nothing: exp(logits - inf) = 0, and whatever arrives for its lse must not matter.
  d_row = jnp.where(sees, jnp.sum(d_out.astype(computed) * out.astype(computed), axis=2) - d_lse, 0)
  d_spec = _no_gradient(spec)
  if spec.sinks is not None:
    sink = jnp.exp(spec.sinks.astype(computed)[None, :, :, None] - lse)
    d_spec['sinks'] = -jnp.sum(sink * d_row, axis=(0, 3)).astype(spec.sinks.dtype)
  padded = pad_spec(blocks, spec)
  lse, d_row = blocks.pad(jnp.where(sees, lse, jnp.inf), q=3, value=jnp.inf), blocks.pad(d_row, q=3)
  q, d_out, k, v = blocks.pad(q, q=4), blocks.pad(d_out, q=4), blocks.pad(k, k=2), blocks.pad(v, k=2)
  q_BxNxGxTxD, d_out_BxNxGxTxD = (jnp.transpose(x, (0, 1, 3, 4, 2)) for x in (q, d_out))
  k_BxNxDxS = jnp.swapaxes(k, 2, 3)

  def visit(masked, i, j, state):
    tile = Tile.cut(blocks, padded, i, j, masked)
    capped, logits = tile.logits(_dot(blocks.cut(k, j=j, k=2), blocks.cut(q, i, q=4), 3, 2))
    p_BxNxSxGxT = jnp.exp(logits - blocks.cut(lse, i, q=3)[:, :, None])
    d_p = tile.drop(_dot(blocks.cut(v, j=j, k=2), blocks.cut(d_out, i, q=4), 3, 2))
    d_logits = p_BxNxSxGxT * (d_p - blocks.cut(d_row, i, q=3)[:, :, None])
    d_capped = d_logits if spec.softcap is None else d_logits * (1 - jnp.square(capped / spec.softcap))
    d_scores = (spec.scale * d_capped).astype(dtype)
    new = dict(
      q=_dot(blocks.cut(k_BxNxDxS, j=j, k=3), d_scores, 3, 2),
      k=_dot(d_scores, blocks.cut(q_BxNxGxTxD, i, q=3), (3, 4), (2, 3)),
      v=_dot(tile.drop(p_BxNxSxGxT).astype(dtype), blocks.cut(d_out_BxNxGxTxD, i, q=3), (3, 4), (2, 3)),
    )
    state = dict(state)
    state['q'] = blocks.add(state['q'], new['q'], i, q=4)
    for name in ('k', 'v'):
      state[name] = blocks.add(state[name], new[name], j=j, k=2)
    if spec.alibi_slopes is not None:
      state['alibi_slopes'] -= jnp.sum(d_logits * tile.distance(), axis=(0, 2, 4))
    if spec.bias is not None:
      d_bias = jnp.sum(d_logits, [axis for axis in range(5) if spec.bias.shape[axis] == 1], keepdims=True)
      state['bias'] = blocks.add(state['bias'], d_bias, i, j, q=4, k=2)
    return state

  state = dict(q=jnp.zeros(q.shape, computed), k=jnp.zeros(k.shape, computed), v=jnp.zeros(v.shape, computed))
  for name in ('alibi_slopes', 'bias'):
    if getattr(spec, name) is not None:
      state[name] = jnp.zeros(getattr(padded, name).shape, computed)
  state = blocks.each(visit, state)
  d_q, d_k, d_v = state.pop('q')[..., :blocks.q_len], state.pop('k'), state.pop('v')
  for name, gradient in state.items():
    array = getattr(spec, name)
    d_spec[name] = lax.slice(gradient, [0] * array.ndim, array.shape).astype(array.dtype)
  d_k, d_v = (x[:, :, :blocks.kv_len] for x in (d_k, d_v))
  return d_q.astype(dtype), d_k.astype(dtype), d_v.astype(dtype), dataclasses.replace(spec, **d_spec)


def _no_gradient(spec):
  """None, which stands for a zero gradient, for every array of the spec."""
  return {f.name: None for f in dataclasses.fields(spec) if not f.metadata.get('static')}


def _dot(a, b, contract_a, contract_b):
  """Matrix product over the two leading batch axes, accumulated in float32 (float64 for float64)."""
  axes = [(axis,) if isinstance(axis, int) else axis for axis in (contract_a, contract_b)]
  computed = jnp.promote_types(a.dtype, jnp.float32)
  return lax.dot_general(a, b, (axes, ((0, 1), (0, 1))), preferred_element_type=computed)
