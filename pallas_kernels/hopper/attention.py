"""Attention for NVIDIA Hopper in Mosaic GPU: what it serves, and how a call reaches the kernels."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from pallas_kernels.block_map import HIDDEN, block_map
from pallas_kernels.deferred import residuals
from pallas_kernels.device import Device, current
from pallas_kernels.hopper import bias as bias_kernel
from pallas_kernels.hopper import decode
from pallas_kernels.hopper import forward as forward_kernel
from pallas_kernels.hopper import keys as keys_kernel
from pallas_kernels.hopper import queries as queries_kernel
from pallas_kernels.hopper.kernel import ROWS, Call, visible_ranges
from pallas_kernels.hopper.tile import LOG2E
from pallas_kernels.hopper.tuning import FORWARD, sizes
from pallas_kernels.sharding import vary_alike
from pallas_kernels.spec import AttentionSpec, Shapes

_KINDS = ('H100', 'H200', 'H800', 'H20', 'GH200')


def supports(spec: AttentionSpec, shapes: Shapes, dtype, device: Device) -> str:
  """Returns '' where the kernels serve the call, or why they do not."""
  if dtype not in (jnp.bfloat16, jnp.float16):
    return f'hopper takes bfloat16 and float16, not {dtype}'
  if shapes.head_dim not in FORWARD:
    return f'hopper takes a head_dim of {", ".join(map(str, FORWARD))}, not {shapes.head_dim}'
  if spec.bias is not None and shapes.head_dim == 256:
    return 'hopper takes a bias up to a head_dim of 192: with more, shared memory is too small for it'
  if spec.scale is not None and spec.scale <= 0:
    return f'hopper takes a scale above 0, not {spec.scale}'
  if not device.interpret and not (device.platform == 'gpu' and any(kind in device.kind for kind in _KINDS)):
    kind = device.kind or device.platform
    return f'hopper needs an NVIDIA GPU of the Hopper generation ({", ".join(_KINDS)}), not {kind}'
  return ''


def attend(q, k, v, spec: AttentionSpec):
  """Returns the output, like q, and lse [batch, q_len, heads] in float32."""
  q, k, v, spec = vary_alike((q, k, v, _scaled(spec, q.shape[-1])))
  core = functools.partial(_attend, interpret=current().interpret)
  return decode.attend(core, q, k, v, spec) if decode.serves(spec, q.shape[1]) else core(q, k, v, spec)


def gradients(q, k, v, spec: AttentionSpec, out, lse, d_out, d_lse):
  """The gradients of q, k, v and the spec, given what came out with all keys; see `Core.gradients`."""
  arguments = vary_alike((q, k, v, _scaled(spec, q.shape[-1]), out, lse, d_out, d_lse))
  *found, d_spec = _backward(*arguments, current().interpret)
  return *found, dataclasses.replace(d_spec, scale=spec.scale)


def _scaled(spec, head_dim):
  return dataclasses.replace(spec, scale=head_dim**-0.5 if spec.scale is None else spec.scale)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(q, k, v, spec, interpret):
  return _forward(q, k, v, spec, interpret)


def _attend_fwd(q, k, v, spec, interpret):
  q, k, v = residuals(q, k, v)
  out, lse = residuals(*_forward(q, k, v, spec, interpret))
  return (out, lse), (q, k, v, spec, out, lse)


def _attend_bwd(interpret, kept, cotangents):
  return _backward(*kept, *cotangents, interpret)


_attend.defvjp(_attend_fwd, _attend_bwd)


def _forward(q, k, v, spec, interpret):
  call, tuning = _call(q, k, spec, interpret), sizes(spec, q.shape[-1], q.shape[1])[0]
  shapes, tile = call.shapes, tuning.warpgroups * ROWS
  ranges = visible_ranges(block_map(spec, shapes, tile, tuning.k_size))
  arrays = _arrays(spec, call, tile, tuning.k_size)
  q = _pad(q, tile, call)
  k, v = (_pad(x, tuning.k_size, call) for x in (k, v))
  # The barrier keeps XLA from fusing slices of a stacked result into a second call of the kernel.
  out, lse = jax.lax.optimization_barrier(forward_kernel.forward(q, k, v, arrays, jnp.asarray(ranges), call, tuning))
  return vary_alike((out[:, : shapes.q_len], jnp.swapaxes(lse[:, :, : shapes.q_len], 1, 2)), q)


def _backward(q, k, v, spec, out, lse, d_out, d_lse, interpret):
  call = _call(q, k, spec, interpret)
  # A row that sees nothing: exp(logits - inf) = 0, and whatever arrives for its lse must not matter.
  sees = lse > -jnp.inf
  d_row = jnp.where(sees, jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1) - d_lse, 0)
  rows = {'lse': jnp.where(sees, lse * LOG2E, jnp.inf), 'd_row': d_row}
  gradients = {f.name: None for f in dataclasses.fields(spec) if not f.metadata.get('static')}
  if spec.sinks is not None:
    sink = jnp.exp(spec.sinks.astype(jnp.float32) - lse)
    gradients['sinks'] = -jnp.sum(sink * d_row, axis=(0, 1)).astype(spec.sinks.dtype)
  d_k, d_v, d_q = _d_keys(q, k, v, d_out, rows, spec, call)
  if d_q is None:
    d_q, d_slopes = _d_queries(q, k, v, d_out, rows, spec, call)
  if spec.alibi_slopes is not None:
    gradients['alibi_slopes'] = d_slopes.astype(spec.alibi_slopes.dtype)
  if spec.bias is not None:
    gradients['bias'] = _d_bias(q, k, v, d_out, rows, spec, call).astype(spec.bias.dtype)
  return vary_alike((d_q, d_k, d_v, dataclasses.replace(spec, **gradients)), q)


def _d_queries(q, k, v, d_out, rows, spec, call):
  tuning, shapes = sizes(spec, q.shape[-1], q.shape[1])[1], call.shapes
  tile = tuning.warpgroups * ROWS
  ranges = visible_ranges(block_map(spec, shapes, tile, tuning.k_size))
  arrays = _arrays(spec, call, tile, tuning.k_size)
  q, d_out = (_pad(x, tile, call) for x in (q, d_out))
  k, v = (_pad(x, tuning.k_size, call) for x in (k, v))
  d_q, *d_slopes = queries_kernel.gradient(
    q, k, v, d_out, _pad_rows(rows, tile), arrays, jnp.asarray(ranges), call, tuning
  )
  return d_q[:, : shapes.q_len], jnp.sum(d_slopes[0][..., : shapes.q_len], axis=(0, 2)) if d_slopes else None


def _d_keys(q, k, v, d_out, rows, spec, call):
  tuning, shapes = sizes(spec, q.shape[-1], q.shape[1])[2], call.shapes
  kinds = block_map(spec, shapes, ROWS, tuning.k_size)
  ranges = visible_ranges(kinds.swapaxes(1, 2))
  arrays = _arrays(spec, call, ROWS, tuning.k_size)
  if 'bias' in arrays and spec.bias.shape[2] > 1:
    arrays['bias'] = jnp.swapaxes(arrays['bias'], 2, 3)
  q, d_out = (_pad(x, ROWS, call) for x in (q, d_out))
  k, v = (_pad(x, tuning.k_size, call) for x in (k, v))
  d_k, d_v, d_q = keys_kernel.gradient(q, k, v, d_out, _pad_rows(rows, ROWS), arrays, jnp.asarray(ranges), call, tuning)
  d_q = d_q if d_q is None else d_q[:, : shapes.q_len].astype(q.dtype)
  return d_k[:, : shapes.kv_len], d_v[:, : shapes.kv_len], d_q


def _d_bias(q, k, v, d_out, rows, spec, call):
  q_size, k_size = bias_kernel.Q_SIZE, bias_kernel.K_SIZE
  visible = jnp.asarray(block_map(spec, call.shapes, q_size, k_size) > HIDDEN).any(0).astype(jnp.int32)
  arrays = _arrays(spec, call, q_size, k_size)
  q, d_out = (_pad(x, q_size, call) for x in (q, d_out))
  k, v = (_pad(x, k_size, call) for x in (k, v))
  d_bias = bias_kernel.gradient(q, k, v, d_out, _pad_rows(rows, q_size), arrays, visible, call)
  length = spec.bias.shape[2]
  d_bias = jnp.sum(d_bias, axis=2, keepdims=True) if length == 1 else d_bias[:, :, :length]
  return d_bias[..., : call.shapes.kv_len]


def _pad_rows(rows, size):
  """[batch, queries, heads] -> [batch, heads, queries in whole tiles]; queries that are not there see nothing."""
  turned = {name: jnp.swapaxes(x, 1, 2) for name, x in rows.items()}
  return {'lse': _whole_tiles(turned['lse'], 2, size, jnp.inf), 'd_row': _whole_tiles(turned['d_row'], 2, size)}


def _call(q, k, spec, interpret):
  shapes = Shapes(q.shape[0], q.shape[1], k.shape[1], q.shape[2], k.shape[2], q.shape[3])
  tokens = tuple(name for name in ('segment_ids', 'order') if getattr(spec, f'q_{name}') is not None)
  static = {f.name: getattr(spec, f.name) for f in dataclasses.fields(spec) if f.metadata.get('static')}
  return Call(shapes, AttentionSpec(**static), tokens, interpret)


def _arrays(spec, call, q_size, k_size):
  """The spec's arrays for kernels whose tiles have these sizes."""
  arrays = {}
  for side, size, padding in (('q', q_size, 0), ('kv', k_size, 1)):
    if call.tokens:
      fields = [getattr(spec, f'{side}_{name}').astype(jnp.int32) for name in call.tokens]
      if call.tokens[0] == 'segment_ids':  # padding differs from every segment, so that kernels compare for equality
        fields[0] = jnp.where(fields[0] == 0, jnp.iinfo(jnp.int32).min + padding, fields[0])
      arrays[f'{side}_tokens'] = _whole_tiles(jnp.stack(fields), 2, size)
  if spec.bias is not None:
    bias = spec.bias.astype(jnp.float32)
    arrays['bias'] = _whole_tiles(_whole_tiles(bias, 2, q_size) if bias.shape[2] > 1 else bias, 3, k_size)
  for name in ('alibi_slopes', 'sinks'):
    if getattr(spec, name) is not None:
      arrays[name] = getattr(spec, name).astype(jnp.float32)
  if spec.dropout_rate:
    arrays['dropout_seed'] = jnp.asarray(spec.dropout_seed).astype(jnp.uint32).reshape(1)
    if spec.dropout_offset is not None:
      arrays['dropout_offset'] = jnp.asarray(spec.dropout_offset).astype(jnp.int32)
  return arrays


def _pad(x, size, call):
  """Rows for TMA: it fills and cuts at the end of an array, but wants whole groups of 8 and at least one tile."""
  # The interpreter allows no access beyond the end.
  whole = call.simulated or x.shape[1] < size
  return _whole_tiles(x, 1, size if whole else 8)


def _whole_tiles(x, axis, size, value=0):
  missing = -x.shape[axis] % size
  widths = [(0, missing if n == axis else 0) for n in range(x.ndim)]
  return jnp.pad(x, widths, constant_values=value) if missing else x
