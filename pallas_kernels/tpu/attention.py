"""Attention on TPU: Pallas kernels that fetch visible blocks only, with grouped heads and every field of the spec."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from pallas_kernels.deferred import residuals
from pallas_kernels.device import Device, current
from pallas_kernels.sharding import vary_alike
from pallas_kernels.spec import AttentionSpec, Shapes
from pallas_kernels.tpu.backward import backward
from pallas_kernels.tpu.forward import forward
from pallas_kernels.tpu.tile import Call
from pallas_kernels.tpu.tuning import tuning

_DTYPES = (jnp.float32, jnp.bfloat16)
_LARGEST_HEAD_DIM = 256
_SUBLANES = 8  # what head_dim is padded to a multiple of
_TABLE_BYTES = 960 * 1024  # of the scalar memory, which has 1 MiB on every generation of the table


def supports(spec: AttentionSpec, shapes: Shapes, dtype, device: Device) -> str:
  """Returns why the call cannot be served, in words; '' where it can."""
  if device.platform != 'tpu':
    return f"tpu runs on a TPU (or, simulated, with target(Device('tpu', interpret=True))), not on {device.platform}"
  if dtype not in _DTYPES:
    return f'tpu takes float32 and bfloat16, not {dtype}'
  if shapes.head_dim > _LARGEST_HEAD_DIM:
    return f'tpu takes a head_dim of at most {_LARGEST_HEAD_DIM}, not {shapes.head_dim}'
  largest = max(call.table_bytes() for call in _calls(device, shapes, dtype, spec))
  if largest > _TABLE_BYTES:
    return f'the list of visible blocks takes {largest} bytes of scalar memory, which has room for {_TABLE_BYTES}'
  return ''


def attend(q, k, v, spec: AttentionSpec):
  """Returns the output, like q, and lse [batch, q_len, heads] in float32."""
  head_dim = q.shape[-1]
  out, lse = _attend(current(), *vary_alike((*map(_padded, (q, k, v)), _scaled(spec, head_dim))))
  return out[..., :head_dim], lse


def gradients(q, k, v, spec: AttentionSpec, out, lse, d_out, d_lse):
  """The gradients of q, k, v and the spec, given what came out with all keys; see `Core.gradients`."""
  head_dim = q.shape[-1]
  kept = *map(_padded, (q, k, v)), _scaled(spec, head_dim), _padded(out), lse
  *found, d_spec = _attend_bwd(current(), *vary_alike((kept, (_padded(d_out), d_lse))))
  return *(x[..., :head_dim] for x in found), dataclasses.replace(d_spec, scale=spec.scale)


def _padded(x):
  return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, -x.shape[-1] % _SUBLANES)))


def _scaled(spec, head_dim):
  return dataclasses.replace(spec, scale=head_dim**-0.5 if spec.scale is None else spec.scale)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(device, q, k, v, spec):
  return forward(q, k, v, _calls(device, _shapes(q, k), q.dtype, spec)[0])


def _attend_fwd(device, q, k, v, spec):
  q, k, v = residuals(q, k, v)
  out, lse = residuals(*_attend(device, q, k, v, spec))
  return (out, lse), (q, k, v, spec, out, lse)


def _attend_bwd(device, kept, cotangents):
  q, k, v, spec, out, lse = kept
  d_out, d_lse = cotangents
  # A query that sees nothing: exp(logits - inf) = 0, and whatever arrives for its lse must not matter.
  sees = lse > -jnp.inf
  d_row = jnp.where(sees, jnp.sum(d_out.astype(lse.dtype) * out.astype(lse.dtype), axis=-1) - d_lse, 0)
  gradients = {f.name: None for f in dataclasses.fields(spec) if not f.metadata.get('static')}
  if spec.sinks is not None:
    sink = jnp.exp(spec.sinks.astype(lse.dtype) - jnp.where(sees, lse, jnp.inf))
    gradients['sinks'] = -jnp.sum(sink * d_row, axis=(0, 1)).astype(spec.sinks.dtype)
  call = _calls(device, _shapes(q, k), q.dtype, spec)[1]
  d_q, d_k, d_v, learned = backward(q, k, v, d_out, jnp.where(sees, lse, jnp.inf), d_row, call)
  for name, gradient in learned.items():
    gradients[name] = gradient.astype(getattr(spec, name).dtype)
  return d_q, d_k, d_v, dataclasses.replace(spec, **gradients)


_attend.defvjp(_attend_fwd, _attend_bwd)


def _shapes(q, k):
  return Shapes(q.shape[0], q.shape[1], k.shape[1], q.shape[2], k.shape[2], q.shape[3])


def _calls(device, shapes, dtype, spec):
  """Forward and backward, which differ in their blocks."""
  tuned = tuning(device.kind, spec, shapes, dtype)
  return [Call(spec, shapes, blocks, device.interpret) for blocks in (tuned.forward, tuned.backward)]
