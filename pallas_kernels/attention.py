"""One attention call over several implementations that agree."""

import functools
import logging

import jax

from pallas_kernels import blockwise, cudnn, hopper, reference, tpu
from pallas_kernels.device import Device, current
from pallas_kernels.spec import AttentionSpec, Shapes, check

_IMPLEMENTATIONS = {'hopper': hopper, 'tpu': tpu, 'blockwise': blockwise, 'reference': reference, 'cudnn': cudnn}
# Of these XLA cannot split a call over devices: under jit over several of them they need jax.shard_map.
ONE_DEVICE = ('hopper', 'tpu')
_LOGGER = logging.getLogger(__name__)


def attention(q, k, v, spec: AttentionSpec, *, implementation: str = 'auto', return_lse: bool = False):
  """Softmax attention with grouped heads, masks, biases, soft-cap, sinks and dropout.

  Differentiable in q, k, v and the spec's bias, alibi_slopes and sinks, through the output and the lse.

  Args:
    q: [batch, q_len, heads, head_dim], floating point.
    k: [batch, kv_len, kv_heads, head_dim], q's dtype; kv_heads divides heads, and query heads that share a key head
      are neighbours.
    v: as k.
    spec: masks and what changes the logits.
    implementation: 'auto' picks, and logs its choice once; 'reference' is the definition in float32 (float64 for
      float64 inputs); 'blockwise' visits visible blocks only, in O(length) memory; 'hopper' and 'tpu' do so in
      kernels for those devices; 'cudnn' calls NVIDIA's library.
    return_lse: also return the log of the softmax's denominator, by which attention over parts of the keys is merged.

  Returns:
    [batch, q_len, heads, head_dim] in q's dtype; with `return_lse` also [batch, q_len, heads] in float32 (float64 for
    float64 inputs).

  Raises:
    ValueError: a shape, dtype or spec is invalid, or `implementation` does not exist or cannot serve the call.
  """
  implementation = resolve(q, k, v, spec, implementation)
  with jax.named_scope(f'attention_{implementation}'):
    out, lse = _IMPLEMENTATIONS[implementation].attend(q, k, v, spec)
  if return_lse and lse is None:
    raise ValueError(f"implementation={implementation!r} gives no lse; use 'auto'")
  return (out, lse) if return_lse else out


def resolve(q, k, v, spec: AttentionSpec, implementation: str = 'auto') -> str:
  """Returns the name of the implementation that `attention` would use, and raises as it does."""
  shapes, device = check(q, k, v, spec), current()
  if implementation == 'auto':
    implementation = _choose(spec, shapes, q.dtype, device)
  if implementation not in _IMPLEMENTATIONS:
    raise ValueError(
      f"there is no attention implementation {implementation!r}; use 'auto' or one of {sorted(_IMPLEMENTATIONS)}"
    )
  reason = _IMPLEMENTATIONS[implementation].supports(spec, shapes, q.dtype, device)
  if reason:
    raise ValueError(f"implementation={implementation!r} cannot serve this call: {reason}; use 'auto'")
  return implementation


def supports(spec: AttentionSpec, shapes: Shapes, dtype, device: Device) -> dict[str, str]:
  """Returns, for each implementation, why it cannot serve a call, in words; '' where it can.

  Args:
    spec: as given to `attention`.
    shapes: sizes of the call.
    dtype: dtype of q, k and v.
    device: what it would run on.
  """
  return {name: module.supports(spec, shapes, dtype, device) for name, module in _IMPLEMENTATIONS.items()}


def _choose(spec, shapes, dtype, device):
  reasons = supports(spec, shapes, dtype, device)
  for name, reason in reasons.items():
    if not reason:
      _log_choice(name, device.kind or device.platform)
      return name
  raise ValueError(f'no attention implementation serves this call: {reasons}')


@functools.cache
def _log_choice(name, device):
  _LOGGER.info("attention: 'auto' uses %r on %s", name, device)
