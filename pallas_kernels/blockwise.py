"""Attention over visible blocks only, with its own backward pass, in O(length) memory: production on CPU.

Everything is kept keys-first: logits are [keys, queries]. Then every large matrix product, forward and backward, is
a plain row-major one (a product that contracts the first axis of its left operand runs several times slower on a CPU)
and the softmax's sums run over a major axis, which vectorises; only arrays of [length, head_dim] are transposed.

Shapes in names: B batch, N kv heads, G query heads of a kv head, T queries, S keys, D head_dim.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.blocks import AXES, Tile, pad_spec, plan
from pallas_kernels.deferred import residuals
from pallas_kernels.device import Device, current
from pallas_kernels.sharding import on_one_device, vary_alike
from pallas_kernels.spec import AttentionSpec, Shapes


def supports(spec: AttentionSpec, shapes: Shapes, dtype, device: Device) -> str:
  """Returns '': any call with floating-point inputs is served on any device; else why not."""
  del spec, shapes, device
  return '' if jnp.issubdtype(dtype, jnp.floating) else f'blockwise takes floating-point inputs, not {dtype}'


def attend(q, k, v, spec: AttentionSpec):
  """Returns the output, like q, and lse [batch, q_len, heads] in float32 (float64 for float64 inputs)."""
  grouped = _grouped(q, k.shape[2])
  out, lse = _attend(*vary_alike((grouped, k, v, _keys_first(spec, *grouped.shape[2:]))))
  return out.reshape(q.shape), lse.reshape(q.shape[:3])


def gradients(q, k, v, spec: AttentionSpec, out, lse, d_out, d_lse):
  """The gradients of q, k, v and the spec, given what came out with all keys; see `Core.gradients`."""
  grouped, *results = (_grouped(x, k.shape[2]) for x in (q, out, lse, d_out, d_lse))
  inputs = (grouped, k, v, _keys_first(spec, *grouped.shape[2:]), *results)
  d_q, d_k, d_v, d_spec = _backward(*vary_alike(inputs))
  return d_q.reshape(q.shape), d_k, d_v, _keys_last(d_spec, spec)


def _grouped(x, kv_heads):
  """[batch, q_len, heads, ...] as [batch, q_len, kv_heads, heads of each, ...]."""
  return x.reshape(*x.shape[:2], kv_heads, x.shape[2] // kv_heads, *x.shape[3:])


def _keys_first(spec, kv_heads, groups, head_dim):
  """The spec with its scale resolved, bias as [B, N, S, G, T] and slopes and sinks as [N, G]; 1s stay 1s."""
  changes = {'scale': head_dim**-0.5 if spec.scale is None else spec.scale}
  for name in ('alibi_slopes', 'sinks'):
    if getattr(spec, name) is not None:
      changes[name] = getattr(spec, name).reshape(kv_heads, groups)
  if spec.bias is not None:
    split = (kv_heads, groups) if spec.bias.shape[1] > 1 else (1, 1)
    bias = spec.bias.reshape(spec.bias.shape[:1] + split + spec.bias.shape[2:])
    changes['bias'] = jnp.transpose(bias, (0, 1, 4, 2, 3))
  return dataclasses.replace(spec, **changes)


def _keys_last(gradients, spec):
  """The gradients of what `_keys_first` made of a spec as those of the spec."""
  changes = {'scale': spec.scale}
  for name in ('alibi_slopes', 'sinks'):
    if getattr(spec, name) is not None:
      changes[name] = getattr(gradients, name).reshape(-1)
  if spec.bias is not None:
    changes['bias'] = jnp.transpose(gradients.bias, (0, 1, 3, 4, 2)).reshape(spec.bias.shape)
  return dataclasses.replace(gradients, **changes)


@jax.custom_vjp
def _attend(q, k, v, spec):
  return _forward(q, k, v, spec)


def _attend_fwd(q, k, v, spec):
  q, k, v = residuals(q, k, v)
  out, lse = residuals(*_forward(q, k, v, spec))
  return (out, lse), (q, k, v, spec, out, lse)


def _attend_bwd(kept, cotangents):
  return _backward(*kept, *cotangents)


_attend.defvjp(_attend_fwd, _attend_bwd)


def _forward(q, k, v, spec):
  q, k, v = lax.optimization_barrier((q, k, v))
  whole = _plan(q, k, spec)
  dtype, computed = q.dtype, jnp.promote_types(q.dtype, jnp.float32)
  padded = pad_spec(whole, spec)
  q_BxNxDxGxT = whole.pad(jnp.transpose(q, (0, 2, 4, 3, 1)), q=4)
  k_BxNxSxD = whole.pad(jnp.transpose(k, (0, 2, 1, 3)), k=2)
  v_BxNxDxS = whole.pad(jnp.transpose(v, (0, 2, 3, 1)), k=3)

  def step(box, state):
    tile = Tile.cut(whole.shapes, padded, box)
    _, logits = tile.logits(_dot(box.cut(k_BxNxSxD, b=0, n=1, k=2), box.cut(q_BxNxDxGxT, b=0, n=1, q=4), 3, 2))
    maximum = jnp.max(logits, axis=2)
    if not whole.strips:
      old_maximum, old_total, old_out = (box.cut(x, b=0, n=1, q=x.ndim - 1) for x in state)
      maximum = jnp.maximum(maximum, old_maximum)
    shift = jnp.where(maximum == -jnp.inf, 0, maximum)
    p_BxNxSxGxT = jnp.exp(logits - shift[:, :, None])
    total = jnp.sum(p_BxNxSxGxT, axis=2)
    out = _dot(box.cut(v_BxNxDxS, b=0, n=1, k=3), tile.drop(p_BxNxSxGxT).astype(dtype), 3, 2)
    if not whole.strips:
      rescale = jnp.exp(old_maximum - shift)
      total, out = total + old_total * rescale, out + old_out * rescale[:, :, None]
    return tuple(box.put(x, y, b=0, n=1, q=x.ndim - 1) for x, y in zip(state, (maximum, total, out), strict=True))

  rows = q_BxNxDxGxT.shape[:2] + q_BxNxDxGxT.shape[3:]
  state = (jnp.full(rows, -jnp.inf, computed), jnp.zeros(rows, computed), jnp.zeros(q_BxNxDxGxT.shape, computed))
  maximum, total, out = (x[..., : q.shape[1]] for x in whole.visit(step, vary_alike(state, q)))
  sees = total > 0
  out = jnp.where(sees, 1 / jnp.where(sees, total, 1), 0)[:, :, None] * out
  lse = jnp.where(sees, maximum + jnp.log(jnp.where(sees, total, 1)), -jnp.inf)
  if spec.sinks is not None:
    with_sink = jnp.logaddexp(lse, spec.sinks.astype(computed)[None, :, :, None])
    out, lse = out * jnp.exp(lse - with_sink)[:, :, None], with_sink
  return jnp.transpose(out.astype(dtype), (0, 4, 1, 3, 2)), jnp.transpose(lse, (0, 3, 1, 2))


def _backward(q, k, v, spec, out, lse, d_out, d_lse):
  q, k, v, d_out = lax.optimization_barrier((q, k, v, d_out))
  whole = _plan(q, k, spec)
  dtype, computed = q.dtype, lse.dtype
  # A row that sees nothing: exp(logits - inf) = 0, and whatever arrives for its lse must not matter.
  sees = lse > -jnp.inf
  d_row = jnp.where(sees, jnp.sum(d_out.astype(computed) * out.astype(computed), axis=-1) - d_lse, 0)
  gradients = {f.name: None for f in dataclasses.fields(spec) if not f.metadata.get('static')}
  if spec.sinks is not None:
    sink = jnp.exp(spec.sinks.astype(computed) - lse)
    gradients['sinks'] = -jnp.sum(sink * d_row, axis=(0, 1)).astype(spec.sinks.dtype)

  padded = pad_spec(whole, spec)
  lse, d_row = (jnp.transpose(x, (0, 2, 3, 1)) for x in (jnp.where(sees, lse, jnp.inf), d_row))
  lse, d_row = whole.pad(lse, q=3, value=jnp.inf), whole.pad(d_row, q=3)
  q_BxNxDxGxT, d_out_BxNxDxGxT = (whole.pad(jnp.transpose(x, (0, 2, 4, 3, 1)), q=4) for x in (q, d_out))
  q_BxNxGxTxD, d_out_BxNxGxTxD = (whole.pad(jnp.transpose(x, (0, 2, 3, 1, 4)), q=3) for x in (q, d_out))
  k_BxNxSxD, v_BxNxSxD = (whole.pad(jnp.transpose(x, (0, 2, 1, 3)), k=2) for x in (k, v))
  k_BxNxDxS = whole.pad(jnp.transpose(k, (0, 2, 3, 1)), k=3)

  def step(box, state):
    tile = Tile.cut(whole.shapes, padded, box)
    cut, add = (functools.partial(method, b=0, n=1) for method in (box.cut, box.add))
    capped, logits = tile.logits(_dot(cut(k_BxNxSxD, k=2), cut(q_BxNxDxGxT, q=4), 3, 2))
    p_BxNxSxGxT = jnp.exp(logits - cut(lse, q=3)[:, :, None])
    d_p = tile.drop(_dot(cut(v_BxNxSxD, k=2), cut(d_out_BxNxDxGxT, q=4), 3, 2))
    d_logits = p_BxNxSxGxT * (d_p - cut(d_row, q=3)[:, :, None])
    d_capped = d_logits if spec.softcap is None else d_logits * (1 - jnp.square(capped / spec.softcap))
    d_scores = (spec.scale * d_capped).astype(dtype)
    state = dict(state)
    state['q'] = add(state['q'], _dot(cut(k_BxNxDxS, k=3), d_scores, 3, 2), q=4)
    state['k'] = add(state['k'], _dot(d_scores, cut(q_BxNxGxTxD, q=3), (3, 4), (2, 3)), k=2)
    dropped = tile.drop(p_BxNxSxGxT).astype(dtype)
    state['v'] = add(state['v'], _dot(dropped, cut(d_out_BxNxGxTxD, q=3), (3, 4), (2, 3)), k=2)
    if spec.alibi_slopes is not None:
      d_slopes = -jnp.sum(d_logits * tile.distance(), axis=(0, 2, 4))
      state['alibi_slopes'] = box.add(state['alibi_slopes'], d_slopes, **AXES['alibi_slopes'])
    if spec.bias is not None:
      d_bias = jnp.sum(d_logits, [axis for axis in range(5) if spec.bias.shape[axis] == 1], keepdims=True)
      state['bias'] = box.add(state['bias'], d_bias, **AXES['bias'])
    return state

  shapes = {'q': q_BxNxDxGxT.shape, 'k': k_BxNxSxD.shape, 'v': v_BxNxSxD.shape}
  shapes |= {n: getattr(padded, n).shape for n in ('alibi_slopes', 'bias') if getattr(spec, n) is not None}
  state = whole.visit(step, vary_alike({name: jnp.zeros(shape, computed) for name, shape in shapes.items()}, q))
  d_q = jnp.transpose(state.pop('q')[..., : q.shape[1]].astype(dtype), (0, 4, 1, 3, 2))
  d_k, d_v = (jnp.swapaxes(state.pop(x)[:, :, : k.shape[1]].astype(dtype), 1, 2) for x in 'kv')
  for name, gradient in state.items():
    array = getattr(spec, name)
    gradients[name] = lax.slice(gradient, [0] * array.ndim, array.shape).astype(array.dtype)
  return d_q, d_k, d_v, dataclasses.replace(spec, **gradients)


def _plan(q, k, spec):
  """For q [B, T, N, G, D] and k [B, S, N, D]."""
  batch, q_len, kv_heads, groups, head_dim = q.shape
  shapes = Shapes(batch, q_len, k.shape[1], kv_heads * groups, kv_heads, head_dim)
  return plan(spec, shapes, piecewise=current().platform == 'cpu' and on_one_device())


def _dot(a, b, contract_a, contract_b):
  """Matrix product over the two leading batch axes, accumulated in float32 (float64 for float64)."""
  axes = [(axis,) if isinstance(axis, int) else axis for axis in (contract_a, contract_b)]
  computed = jnp.promote_types(a.dtype, jnp.float32)
  return lax.dot_general(a, b, (axes, ((0, 1), (0, 1))), preferred_element_type=computed)
