"""Attention by cuDNN through `jax.nn`: a choice for users and a baseline for benchmarks; 'auto' never takes it."""

import jax
import jax.numpy as jnp

from pallas_kernels.device import Device
from pallas_kernels.spec import AttentionSpec, Shapes

_IMPLEMENTATION = 'cudnn'
_ABSENT = ('softcap', 'q_segment_ids', 'q_order', 'alibi_slopes', 'sinks')


def supports(spec: AttentionSpec, shapes: Shapes, dtype, device: Device) -> str:
  """Returns '' where cuDNN serves the call as `AttentionSpec` defines it, or why it does not."""
  if dtype not in (jnp.bfloat16, jnp.float16):
    return f'cudnn takes bfloat16 and float16, not {dtype}'
  if shapes.head_dim % 8 or shapes.head_dim > 256:
    return f'cudnn takes a head_dim that 8 divides, up to 256, not {shapes.head_dim}'
  for field in _ABSENT:
    if getattr(spec, field) is not None:
      return f'cudnn has no {field.removeprefix("q_")}'
  if spec.dropout_rate:
    return 'cudnn drops other places than the other implementations do'
  if spec.causal and shapes.q_len != shapes.kv_len:
    return f'cudnn takes causal attention of equal lengths only, not {shapes.q_len} queries and {shapes.kv_len} keys'
  if spec.window is not None and not spec.causal:
    return 'cudnn takes a window of causal attention only'
  if device.interpret or device.platform != 'gpu' or 'NVIDIA' not in device.kind:
    return f'cudnn needs an NVIDIA GPU, not {device.kind or device.platform}'
  return ''


def attend(q, k, v, spec: AttentionSpec):
  """Returns the output, like q, and None: of the lse cuDNN has no gradient."""
  bias = None if spec.bias is None else spec.bias.astype(q.dtype)
  window = None if spec.window is None else (spec.window - 1, 0)
  out = jax.nn.dot_product_attention(
    q, k, v, bias, scale=spec.scale, is_causal=spec.causal, local_window_size=window, implementation=_IMPLEMENTATION
  )
  return out, None
