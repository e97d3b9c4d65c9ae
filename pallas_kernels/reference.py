"""The oracle: attention as its definition says it, in float32 (float64 for float64 inputs), whole logits in memory."""

import dataclasses

import jax
import jax.numpy as jnp

from pallas_kernels.device import Device
from pallas_kernels.dropout import keep_mask
from pallas_kernels.spec import AttentionSpec, Shapes

_HIGHEST = jax.lax.Precision.HIGHEST


def supports(spec: AttentionSpec, shapes: Shapes, dtype, device: Device) -> str:
  """Returns '': any call with floating-point inputs is served on any device; else why not."""
  del spec, shapes, device
  return '' if jnp.issubdtype(dtype, jnp.floating) else f'reference takes floating-point inputs, not {dtype}'


def attend(q, k, v, spec: AttentionSpec):
  """Returns the output, like q, and lse [batch, q_len, heads] in float32 (float64 for float64 inputs)."""
  logits, visible = _logits(q, k, spec)
  sink = jnp.full(logits.shape[:3] + (1,), -jnp.inf, logits.dtype)
  if spec.sinks is not None:
    sink = jnp.broadcast_to(spec.sinks.astype(logits.dtype)[None, :, None, None], sink.shape)
  lse = _logsumexp(jnp.concatenate([logits, sink], axis=-1))
  v = jnp.repeat(v.astype(logits.dtype), q.shape[2] // v.shape[2], 2)
  out = jnp.einsum('bhqk,bkhd->bqhd', _normalized(logits, visible, lse, spec), v, precision=_HIGHEST)
  return out.astype(q.dtype), jnp.swapaxes(lse[..., 0], 1, 2)


def gradients(q, k, v, spec: AttentionSpec, out, lse, d_out, d_lse):
  """The gradients of q, k, v and the spec, given what came out with all keys; see `Core.gradients`."""
  heads = q.shape[2] // k.shape[2]
  d_row = jnp.sum(d_out.astype(lse.dtype) * out.astype(lse.dtype), axis=-1) - d_lse

  def weighed(q, k, v, learned):
    spec_of = dataclasses.replace(spec, **learned)
    # With the lse held fast, its gradient d_row / d(sum of p) stands for what the softmax does to a row.
    v = jnp.repeat(v.astype(lse.dtype), heads, 2)
    kept = jnp.einsum('bhqk,bkhd->bqhd', probabilities(q, k, spec_of, lse), v, precision=_HIGHEST)
    sums = jnp.sum(probabilities(q, k, dataclasses.replace(spec_of, dropout_rate=0.0), lse), axis=-1)
    sees = jnp.isfinite(lse)
    return jnp.sum(jnp.where(sees[..., None], kept * d_out, 0)) - jnp.sum(
      jnp.where(sees, sums.swapaxes(1, 2) * d_row, 0)
    )

  learned = {name: getattr(spec, name) for name in ('alibi_slopes', 'bias')}
  *found, learned = jax.grad(weighed, (0, 1, 2, 3))(q, k, v, learned)
  nothing = {field.name: None for field in dataclasses.fields(spec) if not field.metadata.get('static')}
  return *found, dataclasses.replace(spec, **(nothing | learned))


def probabilities(q, k, spec: AttentionSpec, lse):
  """The probabilities of a call whose lse is known [batch, heads, q_len, kv_len], whole in memory, after dropout.

  Differentiable by all arguments; for what the core does not do with them itself.

  Args:
    q, k, spec: as given to `attention`.
    lse: as it returned it.
  """
  logits, visible = _logits(q, k, spec)
  return _normalized(logits, visible, jnp.swapaxes(lse, 1, 2)[..., None], spec)


def _logits(q, k, spec):
  """Logits [b, h, q, k] with -inf where a key is not visible, and where it is."""
  computed = jnp.promote_types(q.dtype, jnp.float32)
  q, k = (x.astype(computed) for x in (q, jnp.repeat(k, q.shape[2] // k.shape[2], 2)))
  scale = q.shape[-1] ** -0.5 if spec.scale is None else spec.scale
  logits = scale * jnp.einsum('bqhd,bkhd->bhqk', q, k, precision=_HIGHEST)
  visible, bias = _mask_and_bias(spec, logits.shape, computed)
  if spec.softcap is not None:
    logits = spec.softcap * jnp.tanh(logits / spec.softcap)
  return jnp.where(visible, logits + bias, -jnp.inf), visible


def _normalized(logits, visible, lse, spec):
  shifted = jnp.where(visible, logits, 0) - jnp.where(jnp.isfinite(lse), lse, 0)
  probabilities = jnp.where(visible, jnp.exp(jnp.where(visible, shifted, 0)), 0)
  if spec.dropout_rate:
    place = jnp.meshgrid(*(jnp.arange(n) for n in logits.shape), indexing='ij', sparse=True)
    keep = keep_mask(spec.dropout_seed, spec.dropout_rate, spec.dropout_offset, *place)
    probabilities = jnp.where(keep, probabilities / (1 - spec.dropout_rate), 0)
  return probabilities


def _mask_and_bias(spec: AttentionSpec, shape, dtype):
  """Which keys are visible, bool, and what is added to the logits, both broadcastable to `shape` [b, h, q, k]."""
  q_index = jnp.arange(shape[2])[None, :, None] + shape[3] - shape[2]
  k_index = jnp.arange(shape[3])[None, None, :]
  distance = q_index - k_index
  visible = jnp.ones((1,) + shape[2:], bool)
  if spec.causal:
    visible &= distance >= 0
  if spec.q_order is not None:
    distance = spec.q_order[:, :, None] - spec.kv_order[:, None, :]
    visible &= distance >= 0
  if spec.window is not None:
    visible &= jnp.abs(distance) < spec.window
  if spec.q_segment_ids is not None:
    q_segment, k_segment = spec.q_segment_ids[:, :, None], spec.kv_segment_ids[:, None, :]
    visible &= (q_segment == k_segment) & (q_segment != 0)
  bias = jnp.zeros((1, 1, 1, 1), dtype)
  if spec.alibi_slopes is not None:
    bias -= spec.alibi_slopes.astype(dtype)[None, :, None, None] * jnp.abs(distance)[:, None].astype(dtype)
  if spec.bias is not None:
    bias += spec.bias.astype(dtype)
  return visible[:, None], bias


def _logsumexp(x):
  """log(sum(exp(x))) over the last axis, -inf with zero gradient where all are -inf."""
  finite = jnp.isfinite(jnp.max(x, axis=-1, keepdims=True))
  return jnp.where(finite, jax.nn.logsumexp(jnp.where(finite, x, 0), axis=-1, keepdims=True), -jnp.inf)
