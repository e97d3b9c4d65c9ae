"""One attention call over several implementations that agree."""

import dataclasses
import functools
import logging

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from pallas_kernels import blockwise, cudnn, hopper, reference, tpu
from pallas_kernels.device import Device, current
from pallas_kernels.spec import AttentionSpec, Shapes, check

_IMPLEMENTATIONS = {'hopper': hopper, 'tpu': tpu, 'blockwise': blockwise, 'reference': reference, 'cudnn': cudnn}
_ONE_DEVICE = ('hopper', 'tpu')  # XLA cannot split a call of these over devices
_LOGGER = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Partition:
  """How a mesh of several devices holds a call, whole in length and head_dim.

  Attributes:
    mesh: the devices.
    queries: of q and the output, [batch, length, heads, head_dim].
    keys: of k and v.
  """

  mesh: Mesh
  queries: PartitionSpec
  keys: PartitionSpec


def attention(q, k, v, spec: AttentionSpec, *, implementation: str = 'auto', return_lse: bool = False,
              partition: Partition | None = None):
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
    partition: where arrays are split over devices under jit and the implementation may be one that XLA cannot split
      (hopper, tpu): it then runs on each device's part.
    return_lse: also return the log of the softmax's denominator, by which attention over parts of the keys is merged.

  Returns:
    [batch, q_len, heads, head_dim] in q's dtype; with `return_lse` also [batch, q_len, heads] in float32 (float64 for
    float64 inputs).

  Raises:
    ValueError: a shape, dtype or spec is invalid, or `implementation` does not exist or cannot serve the call.
  """
  out, lse = _attention(q, k, v, spec, implementation, partition)
  if return_lse and lse is None:
    raise ValueError(f"implementation={implementation!r} gives no lse; use 'auto'")
  return (out, lse) if return_lse else out


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attention(q, k, v, spec, implementation, partition):
  """The choice is made in here so that it is made again where a transformation calls this again in another dtype."""
  name = _resolve(q, k, v, spec, implementation)
  attend = _IMPLEMENTATIONS[name].attend
  if partition is not None and name in _ONE_DEVICE:
    attend = _on_each_device(attend, spec, partition)
  with jax.named_scope(f'attention_{name}'):
    return attend(q, k, v, spec)


def _attention_fwd(q, k, v, spec, implementation, partition):
  return jax.vjp(lambda *call: _attention.fun(*call, implementation, partition), q, k, v, spec)


def _attention_bwd(implementation, partition, pullback, cotangents):
  del implementation, partition
  return pullback(cotangents)


_attention.defvjp(_attention_fwd, _attention_bwd)


def _on_each_device(attend, spec, partition):
  batch, _, heads, *_ = (*partition.queries, None, None, None)
  whole = PartitionSpec()
  specs = {'alibi_slopes': PartitionSpec(heads), 'sinks': PartitionSpec(heads)}
  specs |= {'dropout_seed': whole, 'dropout_offset': whole}
  if spec.bias is not None:
    sizes = zip((batch, heads), spec.bias.shape)
    specs['bias'] = PartitionSpec(*(names if size > 1 else None for names, size in sizes))
  spec_specs = dataclasses.replace(spec, **{
    field.name: specs.get(field.name, PartitionSpec(batch)) for field in dataclasses.fields(spec)
    if not field.metadata.get('static') and getattr(spec, field.name) is not None})

  def run(q, k, v, spec):
    if spec.dropout_rate:  # places count in the whole call: the mask is the same whatever the mesh
      place = lambda names, size: jnp.uint32(jax.lax.axis_index(names) * size if names else 0)
      offset = jnp.stack([place(batch, q.shape[0]), place(heads, q.shape[2]), jnp.uint32(0), jnp.uint32(0)])
      if spec.dropout_offset is not None:
        offset += jnp.asarray(spec.dropout_offset).astype(jnp.uint32)
      spec = dataclasses.replace(spec, dropout_offset=offset)
    return attend(q, k, v, spec)

  return jax.shard_map(
    run, mesh=partition.mesh, in_specs=(partition.queries, partition.keys, partition.keys, spec_specs),
    out_specs=(partition.queries, PartitionSpec(batch, None, heads)))


def _resolve(q, k, v, spec, implementation):
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
