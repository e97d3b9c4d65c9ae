"""Attention that XLA cannot split over devices runs on each device's part of the batch, with the same result."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import model as model_lib
import objectives
from configs import base
from parallel import axes, rules


@pytest.fixture(scope='module')
def mesh():
  return jax.sharding.Mesh(np.array(jax.devices()[:8]).reshape(4, 2), ('data', 'fsdp'))


def _loss():
  config = base.get_config()
  config.model.update({
    'vocab_size': 64, 'num_layers': 2, 'embed_dim': 32, 'num_heads': 2, 'num_kv_heads': 1,
    'attention_implementation': 'blockwise',
  })
  model, params = model_lib.build(config.model)
  return objectives.loss(config.objective, model), params


def _batch():
  random = np.random.default_rng(0)
  return {
    'tokens': jnp.asarray(random.integers(0, 64, (8, 25)), jnp.int32),
    'segment_ids': jnp.asarray(np.sort(random.integers(1, 4, (8, 25)), axis=1), jnp.int32),
    'positions': jnp.broadcast_to(jnp.arange(25, dtype=jnp.int32), (8, 25)),
  }


def test_attention_that_only_one_device_can_run_runs_on_each_ones_rows_with_the_same_gradients(mesh, monkeypatch):
  loss, params = _loss()
  batch, key = _batch(), jax.random.key(0)
  expected = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, batch, key)
  monkeypatch.setattr('model.attention.ONE_DEVICE', ('blockwise',))

  def step(params, batch, key):
    with axes.activation_sharding(mesh, rules.activation_spec):
      return jax.value_and_grad(loss, has_aux=True)(params, batch, key)

  rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(('data', 'fsdp')))
  traced = jax.jit(step).trace(params, jax.device_put(batch, rows), key)
  got = traced.lower().compile()(params, jax.device_put(batch, rows), key)
  assert 'shard_map' in str(traced.jaxpr)
  for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_parts_of_a_batch_know_their_number_and_one_device_is_part_0(mesh):
  rows = jnp.zeros((8, 3))
  number = lambda shard, x: x + shard
  assert not np.any(axes.per_shard(number, (rows,), ((axes.BATCH, axes.LENGTH),), (axes.BATCH, axes.LENGTH)))
  with axes.activation_sharding(mesh, rules.activation_spec):
    numbered = jax.jit(lambda x: axes.per_shard(
      number, (x,), ((axes.BATCH, axes.LENGTH),), (axes.BATCH, axes.LENGTH)))(rows)
  assert np.array_equal(numbered[:, 0], np.arange(8))
