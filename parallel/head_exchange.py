"""Attention whose tokens lie on several devices, which exchange tokens for heads.

Called on every device's part inside `jax.shard_map`. B batch, L tokens of a device, N devices, H heads, G kv_heads, K
head_dim.
"""

import dataclasses
import math

import jax.numpy as jnp
from jax import lax

from parallel.pieces import further, vary_alike


@dataclasses.dataclass(frozen=True)
class AllToAll:
  """Attention over all tokens by a part of the heads (Jacobs et al. 2023, DeepSpeed-Ulysses).

  Each device gives the others their heads of its tokens and gets their tokens of its heads; results go back the same
  way. Key heads that are fewer than the devices are sent several times.

  Attributes:
    axis_names: mesh axes that split the length.
  """

  axis_names: tuple[str, ...]

  def __call__(self, core, q, k, v, spec, distances=None):
    """Takes and returns what `Ring` does; `distances` also has `of_heads(first, count)`, the same for some heads.

    Raises:
      ValueError: the devices do not divide the heads.
    """
    devices, heads, kv_heads = lax.axis_size(self.axis_names), q.shape[2], k.shape[2]
    if heads % devices:
      raise ValueError(
        f"model.attention.context_parallel='all_to_all' gives each of {devices} devices the same share of {heads} "
        f"heads; choose heads that {devices} divides, a smaller mesh.sequence, or 'ring'"
      )
    q, k, v, spec, distances = vary_alike((q, k, v, spec, distances))
    repeats = devices // math.gcd(devices, kv_heads)
    k, v = (self._to_heads(jnp.repeat(x, repeats, axis=2) if repeats > 1 else x) for x in (k, v))
    q, count = self._to_heads(q), heads // devices
    first = lax.axis_index(self.axis_names) * count
    spec = self._of_heads(spec, first, count)
    if distances is not None:
      spec = dataclasses.replace(spec, bias=distances.of_heads(first, count).bias(q.shape[1], k.shape[1], 0))
    out, lse = core.attend(q, k, v, spec)
    return self._to_tokens(out), self._to_tokens(lse)

  def _to_heads(self, x):
    return lax.all_to_all(x, self.axis_names, split_axis=2, concat_axis=1, tiled=True)

  def _to_tokens(self, x):
    return lax.all_to_all(x, self.axis_names, split_axis=1, concat_axis=2, tiled=True)

  def _of_heads(self, spec, first, count):
    changes = {}
    for name in ('alibi_slopes', 'sinks'):
      if getattr(spec, name) is not None:
        changes[name] = lax.dynamic_slice_in_dim(getattr(spec, name), first, count)
    if spec.dropout_rate:
      changes['dropout_offset'] = further(spec.dropout_offset, head=first)
    if spec.bias is not None:
      changes['bias'] = self._bias_of_heads(spec.bias, first, count)
    return dataclasses.replace(spec, **changes)

  def _bias_of_heads(self, bias, first, count):
    """Of all queries, from that of this device's."""
    _, heads, queries, _ = bias.shape
    if heads > 1 and queries > 1:
      return lax.all_to_all(bias, self.axis_names, split_axis=1, concat_axis=2, tiled=True)
    if heads > 1:
      return lax.dynamic_slice_in_dim(bias, first, count, axis=1)
    return lax.all_gather(bias, self.axis_names, axis=2, tiled=True) if queries > 1 else bias
