"""Gradients of attention to some of the keys, given what came out with all of them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

from pallas_kernels import AttentionSpec, Core, Device, attention

DEVICES = {
  'reference': Device('cpu'),
  'blockwise': Device('cpu'),
  'tpu': Device('tpu', interpret=True),
  'hopper': Device('gpu', 'NVIDIA H200', interpret=InterpretGPUParams()),
}
SPLIT = 24


def _normal(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape)


def _spec(rich):
  ids = jnp.sort(jax.random.randint(jax.random.key(9), (2, 40), 0, 3))
  order = jax.random.permutation(jax.random.key(8), 40)
  order = jnp.stack([order, order[::-1]])
  spec = AttentionSpec(q_segment_ids=ids, kv_segment_ids=ids, q_order=order, kv_order=order)
  if not rich:
    return spec
  learned = {'alibi_slopes': jnp.abs(_normal(7, 4)), 'bias': _normal(6, 1, 4, 40, 40)}
  return dataclasses.replace(spec, softcap=2.0, dropout_rate=0.3, dropout_seed=jnp.uint32(3), **learned)


def _of_keys(spec, keys):
  changes = {'kv_segment_ids': spec.kv_segment_ids[:, keys], 'kv_order': spec.kv_order[:, keys]}
  if spec.bias is not None:
    changes |= {'bias': spec.bias[..., keys], 'dropout_offset': jnp.asarray([0, 0, 0, keys.start])}
  return dataclasses.replace(spec, **changes)


@pytest.mark.parametrize(
  'implementation, rich',
  [
    ('reference', True),
    ('blockwise', True),
    pytest.param('tpu', True, marks=pytest.mark.slow),
    pytest.param('hopper', False, marks=pytest.mark.slow),
    pytest.param('hopper', True, marks=pytest.mark.slow),
  ],
)
def test_gradients_of_parts_add_up_to_those_of_the_whole(implementation, rich):
  dtype, head_dim = (jnp.bfloat16, 64) if implementation == 'hopper' else (jnp.float32, 8)
  q, d_out = (_normal(seed, 2, 40, 4, head_dim).astype(dtype) for seed in (0, 1))
  k, v = (_normal(seed, 2, 40, 2, head_dim).astype(dtype) for seed in (2, 3))
  d_lse, spec, core = _normal(4, 2, 40, 4), _spec(rich), Core(implementation, DEVICES[implementation])
  learned = {name: getattr(spec, name) for name in ('alibi_slopes', 'bias') if rich}

  def whole(q, k, v, learned):
    out, lse = attention(q, k, v, dataclasses.replace(spec, **learned), implementation='reference', return_lse=True)
    return jnp.sum(out * d_out) + jnp.sum(jnp.where(jnp.isfinite(lse), lse * d_lse, 0)), (out, lse)

  arguments = tuple(x.astype(jnp.float32) for x in (q, k, v))
  expected, (out, lse) = jax.jit(jax.grad(whole, (0, 1, 2, 3), has_aux=True))(*arguments, learned)

  @jax.jit
  def of_part(keys_and_values, spec):
    return core.gradients(q, *keys_and_values, spec, out.astype(dtype), lse, d_out, d_lse)

  parts = [slice(0, SPLIT), slice(SPLIT, 40)]
  (d_q, d_k, d_v, d_spec), later = (of_part((k[:, part], v[:, part]), _of_keys(spec, part)) for part in parts)
  got = [d_q + later[0], *(jnp.concatenate(pair, axis=1) for pair in ((d_k, later[1]), (d_v, later[2])))]
  got.append({})
  if rich:
    bias = jnp.concatenate([d_spec.bias, later[3].bias], axis=3)
    got[3] = {'alibi_slopes': d_spec.alibi_slopes + later[3].alibi_slopes, 'bias': bias}
  tolerance = 3e-2 if dtype == jnp.bfloat16 else 2e-5
  for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(list(expected)), strict=True):
    assert np.linalg.norm(one - other) <= tolerance * np.linalg.norm(other)
