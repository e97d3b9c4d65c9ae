"""One attention call over several implementations that agree, on one device or several."""

import dataclasses
import functools
import logging

import jax
import jax.numpy as jnp

from pallas_kernels import blockwise, cudnn, hopper, reference, tpu
from pallas_kernels.deferred import Output, defer
from pallas_kernels.device import Device, current, target
from pallas_kernels.spec import AttentionSpec, Shapes, check

_IMPLEMENTATIONS = {'hopper': hopper, 'tpu': tpu, 'blockwise': blockwise, 'reference': reference, 'cudnn': cudnn}
_LOGGER = logging.getLogger(__name__)


def attention(q, k, v, spec: AttentionSpec, *, implementation: str = 'auto', return_lse: bool = False):
  """Softmax attention with grouped heads, masks, biases, soft-cap, sinks and dropout.

  Differentiable in q, k, v and the spec's bias, alibi_slopes and sinks, through the output and the lse. One equation of
  the jaxpr (see `deferred`): `implementation` is resolved for the dtype that q, k and v have when it is evaluated.

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
    ValueError: a shape, dtype or spec is invalid, or `implementation` does not exist; once it is evaluated or lowered,
      if the implementation cannot serve the call.
  """
  check(q, k, v, spec)
  return _deferred(None, implementation, return_lse, q, k, v, spec)


def attention_across(exchange, q, k, v, *arguments, implementation: str = 'auto', return_lse: bool = False):
  """Attention whose tokens lie on several devices: on each of them, inside `jax.shard_map`, for its queries.

  As `attention`, one equation of the jaxpr: what devices send each other has the dtype that q, k and v have then.

  Args:
    exchange: hashable, called as `exchange(core, q, k, v, *arguments)` with a `Core`; moves queries, keys and values
      between devices, and returns the output and the lse of q. Differentiable as `attention` is.
    q: [batch, q_len, heads, head_dim], floating point, this device's.
    k: [batch, kv_len, kv_heads, head_dim], q's dtype, this device's.
    v: as k.
    *arguments: pytrees of arrays.
    implementation, return_lse: as for `attention`.

  Returns:
    As `attention`.

  Raises:
    ValueError: once it is evaluated or lowered, as `attention`, and what `exchange` raises.
  """
  return _deferred(exchange, implementation, return_lse, q, k, v, *arguments)


@dataclasses.dataclass(frozen=True)
class Core:
  """Attention on one device, for those who put a call together from parts of the keys.

  Attributes:
    implementation: as for `attention`, resolved for each part.
    device: what it runs on.
  """

  implementation: str
  device: Device

  def attend(self, q, k, v, spec: AttentionSpec):
    """The output and the lse of attention to these keys, differentiable, see `attention`."""
    out, lse = _run(self.implementation, self.device, q, k, v, spec)
    return out, _given(lse, self.implementation)

  def gradients(self, q, k, v, spec: AttentionSpec, out, lse, d_out, d_lse):
    """The gradients of q, k, v and the spec's bias and slopes through the probabilities of these keys.

    Over all parts of the keys, gradients add up to those of attention to all.

    Args:
      q, k, v, spec: as given to `attend`, without sinks.
      out: what came out with all keys, like q.
      lse: the same, [batch, q_len, heads] in float32 (float64 for float64 inputs).
      d_out: the gradient of out.
      d_lse: the gradient of lse.

    Returns:
      The gradients of q, k, v, and a spec that holds those of its arrays.
    """
    with target(self.device):
      name = _resolve(q, k, v, spec, self.implementation, self.device)
      with jax.named_scope(f'attention_{name}'):
        return _IMPLEMENTATIONS[name].gradients(q, k, v, spec, out, lse, d_out, d_lse)


def _deferred(exchange, implementation, return_lse, q, k, v, *arguments):
  if implementation != 'auto' and implementation not in _IMPLEMENTATIONS:
    raise ValueError(
      f"there is no attention implementation {implementation!r}; use 'auto' or one of {sorted(_IMPLEMENTATIONS)}"
    )
  outputs = (Output(0, q.shape, q.dtype), Output(0, (*q.shape[:3], 1), jnp.promote_types(q.dtype, jnp.float32)))
  static = (exchange, implementation, return_lse, current())
  out, *lse = defer(_attend, static, 3, outputs if return_lse else outputs[:1], q, k, v, *arguments)
  return (out, lse[0][..., 0]) if return_lse else out


def _attend(static, q, k, v, *arguments) -> list:
  exchange, implementation, return_lse, device = static
  if exchange is None:
    out, lse = _run(implementation, device, q, k, v, *arguments)
  else:
    out, lse = exchange(Core(implementation, device), q, k, v, *arguments)
  return [out, _given(lse, implementation)[..., None]] if return_lse else [out]


def _run(implementation, device, q, k, v, spec):
  with target(device):
    name = _resolve(q, k, v, spec, implementation, device)
    with jax.named_scope(f'attention_{name}'):
      return _IMPLEMENTATIONS[name].attend(q, k, v, spec)


def _given(lse, implementation):
  if lse is None:
    raise ValueError(f"implementation={implementation!r} gives no lse; use 'auto'")
  return lse


def _resolve(q, k, v, spec, implementation, device):
  shapes = check(q, k, v, spec)
  if implementation == 'auto':
    return _choose(spec, shapes, q.dtype, device)
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
