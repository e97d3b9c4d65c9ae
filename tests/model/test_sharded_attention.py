"""Attention kernels within the model: chosen in the dtype that precision gives, on each device's part of a mesh."""

import contextlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import model as model_lib
import objectives
import precision
from configs import base
from pallas_kernels import Device, target
from parallel import axes, rules


@pytest.fixture(scope='module')
def mesh():
  return jax.sharding.Mesh(np.array(jax.devices()[:8]).reshape(4, 2), ('data', 'fsdp'))


def _loss():
  config = base.get_config()
  config.model.update({
    'vocab_size': 64, 'num_layers': 2, 'embed_dim': 32, 'num_heads': 2, 'num_kv_heads': 1,
  })
  config.model.attention.implementation = 'blockwise'
  model, params = model_lib.build(config.model)
  return objectives.create(config.objective).loss(model), params


def _batch():
  random = np.random.default_rng(0)
  return {
    'tokens': jnp.asarray(random.integers(0, 64, (8, 24)), jnp.int32),
    'labels': jnp.asarray(random.integers(-1, 64, (8, 24)), jnp.int32),
    'segment_ids': jnp.asarray(np.sort(random.integers(1, 4, (8, 24)), axis=1), jnp.int32),
    'positions': jnp.broadcast_to(jnp.arange(24, dtype=jnp.int32), (8, 24)),
  }


def test_attention_that_only_one_device_can_run_runs_on_each_ones_rows_with_the_same_gradients(mesh, monkeypatch):
  loss, params = _loss()
  batch, key = _batch(), jax.random.key(0)
  expected = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, batch, key)
  monkeypatch.setattr(sys.modules['pallas_kernels.attention'], '_ONE_DEVICE', ('blockwise',))

  def step(params, batch, key):
    with axes.activation_sharding(mesh, rules.activation_spec):
      return jax.value_and_grad(loss, has_aux=True)(params, batch, key)

  rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(('data', 'fsdp')))
  traced = jax.jit(step).trace(params, jax.device_put(batch, rows), key)
  got = traced.lower().compile()(params, jax.device_put(batch, rows), key)
  assert 'shard_map' in str(traced.jaxpr)
  for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('length, remat', [(64, 'none'), (1024, 'full')])
@pytest.mark.parametrize('devices', [1, 8])
def test_the_model_in_bfloat16_reaches_the_kernels_of_a_gpu(mesh, devices, length, remat):
  config = base.get_config()
  config.model.update({
    'vocab_size': 64, 'num_layers': 2, 'embed_dim': 128, 'num_heads': 2, 'num_kv_heads': 1, 'max_length': length,
    'remat': remat,
  })
  model, params = model_lib.build(config.model)
  objective = objectives.create(config.objective)
  loss = precision.bf16(objective.loss(model))
  batch = dict.fromkeys(objective.batch_axes, jnp.ones((8, length), jnp.int32))

  def step(params, batch, key):
    context = axes.activation_sharding(mesh, rules.activation_spec) if devices > 1 else contextlib.nullcontext()
    with context:
      return jax.grad(loss, has_aux=True)(params, batch, key)

  with target(Device('gpu', 'NVIDIA H200')):
    traced = jax.jit(step).trace(params, batch, jax.random.key(0))
  assert ('shard_map' in str(traced.jaxpr)) == (devices > 1)
  assert traced.lower(lowering_platforms=('cuda',)).as_text().count('mosaic_gpu') >= 2  # forward and gradients
