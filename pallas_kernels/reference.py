"""The oracle: attention as its definition says it, in float32 (float64 for float64 inputs), whole logits in memory."""

import jax
import jax.numpy as jnp

from pallas_kernels.device import Device
from pallas_kernels.dropout import keep_mask
from pallas_kernels.spec import AttentionSpec, Shapes


def supports(spec: AttentionSpec, shapes: Shapes, dtype, device: Device) -> str:
  """Returns '': any call with floating-point inputs is served on any device; else why not."""
  del spec, shapes, device
  return '' if jnp.issubdtype(dtype, jnp.floating) else f'reference takes floating-point inputs, not {dtype}'


def attend(q, k, v, spec: AttentionSpec):
  """Returns the output, like q, and lse [batch, q_len, heads] in float32 (float64 for float64 inputs)."""
  dtype, computed = q.dtype, jnp.promote_types(q.dtype, jnp.float32)
  groups = q.shape[2] // k.shape[2]
  q, k, v = (x.astype(computed) for x in (q, jnp.repeat(k, groups, 2), jnp.repeat(v, groups, 2)))
  highest = jax.lax.Precision.HIGHEST
  scale = q.shape[-1] ** -0.5 if spec.scale is None else spec.scale
  logits = scale * jnp.einsum('bqhd,bkhd->bhqk', q, k, precision=highest)
  visible, bias = _mask_and_bias(spec, logits.shape, computed)
  if spec.softcap is not None:
    logits = spec.softcap * jnp.tanh(logits / spec.softcap)
  logits = jnp.where(visible, logits + bias, -jnp.inf)
  sink = jnp.full(logits.shape[:3] + (1,), -jnp.inf, computed)
  if spec.sinks is not None:
    sink = jnp.broadcast_to(spec.sinks.astype(computed)[None, :, None, None], sink.shape)
  lse = _logsumexp(jnp.concatenate([logits, sink], axis=-1))
  probabilities = jnp.where(visible, jnp.exp(jnp.where(visible, logits, 0) - jnp.where(jnp.isfinite(lse), lse, 0)), 0)
  if spec.dropout_rate:
    place = jnp.meshgrid(*(jnp.arange(n) for n in logits.shape), indexing='ij', sparse=True)
    if spec.dropout_offset is not None:
      place = [x + first for x, first in zip(place, spec.dropout_offset)]
    keep = keep_mask(spec.dropout_seed, spec.dropout_rate, *place)
    probabilities = jnp.where(keep, probabilities / (1 - spec.dropout_rate), 0)
  out = jnp.einsum('bhqk,bkhd->bqhd', probabilities, v, precision=highest)
  return out.astype(dtype), jnp.swapaxes(lse[..., 0], 1, 2)


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
