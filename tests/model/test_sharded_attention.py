"""Attention kernels within the model: chosen in the dtype that precision gives, on each device's part of a mesh."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from harness.layouts import make_layout

import model as model_lib
import objectives
import precision
from configs import base
from model.attend import attend
from pallas_kernels import AttentionSpec, Device, attention, target
from parallel import axes


def _over_rows_and_heads():
  return axes.activation_sharding(make_layout(data=4, tensor=2))


@pytest.mark.parametrize(
  'fields',
  [
    {'dropout_rate': 0.3, 'causal': True},
    {'dropout_rate': 0.3, 'segmented': True, 'bias': (8, 1), 'learned': True},
    {'bias': (1, 4)},
  ],
)
def test_parts_give_what_the_whole_gives_dropout_and_gradients_included(fields):
  normal = lambda seed, *shape: jax.random.normal(jax.random.key(seed), shape)
  fields = dict(fields)
  if fields.pop('segmented', False):
    ids = jnp.sort(jax.random.randint(jax.random.key(9), (8, 20), 0, 3))
    fields.update(q_segment_ids=ids, kv_segment_ids=ids)
  if fields.pop('learned', False):
    fields.update(alibi_slopes=jnp.abs(normal(7, 4)), sinks=normal(8, 4))
  if 'bias' in fields:
    fields['bias'] = normal(6, *fields['bias'], 20, 20)
  if 'dropout_rate' in fields:
    fields['dropout_seed'] = jnp.uint32(3)
  spec = AttentionSpec(**fields)
  inputs = normal(0, 8, 20, 4, 8), normal(1, 8, 20, 2, 8), normal(2, 8, 20, 2, 8), spec

  def gradient(call):
    loss = lambda *inputs: jnp.sum(jnp.sin(call(*inputs)))
    return jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3), allow_int=True))

  expected = gradient(functools.partial(attention, implementation='reference'))(*inputs)

  def on_devices(*inputs):
    with _over_rows_and_heads():
      return attend(*inputs, 'blockwise', 'ring')

  got = gradient(on_devices)(*inputs)
  for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
    if jnp.issubdtype(one.dtype, jnp.floating):
      np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.optimised
def test_every_device_holds_only_its_rows_and_heads():
  q = jax.ShapeDtypeStruct((8, 20, 4, 8), jnp.float32)
  with _over_rows_and_heads():
    traced = jax.jit(lambda q: attend(q, q, q, AttentionSpec(causal=True), 'blockwise', 'ring')).trace(q)
  text = str(traced.jaxpr)
  assert text.count('kernel[') == 1 and 'f32[2,20,2,8]' in text
  assert 'all-' not in traced.lower().compile().as_text()


def _loss(attention_dropout_rate=0.0):
  config = base.get_config()
  config.model.update({'vocab_size': 64, 'num_layers': 2, 'embed_dim': 32, 'num_heads': 2, 'num_kv_heads': 1})
  config.model.attention.update(implementation='blockwise', dropout_rate=attention_dropout_rate)
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


def test_the_model_drops_the_same_on_a_mesh_as_on_one_device():
  loss, params = _loss(attention_dropout_rate=0.2)
  batch, key = _batch(), jax.random.key(0)
  expected = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, batch, key)

  layout = make_layout(data=4, fsdp=2)

  def step(params, batch, key):
    with axes.activation_sharding(layout):
      return jax.value_and_grad(loss, has_aux=True)(params, batch, key)

  rows = layout.sharding(layout.activation_spec((axes.BATCH,)))
  got = jax.jit(step)(params, jax.device_put(batch, rows), key)
  for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('length, remat', [(64, 'none'), (1024, 'full')])
@pytest.mark.parametrize('devices', [1, 8])
def test_the_model_in_bfloat16_reaches_the_kernels_of_a_gpu(devices, length, remat):
  config = base.get_config()
  config.model.update(
    {
      'vocab_size': 64,
      'num_layers': 2,
      'embed_dim': 128,
      'num_heads': 2,
      'num_kv_heads': 1,
      'max_length': length,
      'remat': remat,
    }
  )
  model, params = model_lib.build(config.model)
  objective = objectives.create(config.objective)
  loss = precision.bf16(objective.loss(model))
  batch = dict.fromkeys(objective.batch_axes, jnp.ones((8, length), jnp.int32))

  def step(params, batch, key):
    context = axes.activation_sharding(make_layout(data=devices)) if devices > 1 else contextlib.nullcontext()
    with context:
      return jax.grad(loss, has_aux=True)(params, batch, key)

  with target(Device('gpu', 'NVIDIA H200')):
    traced = jax.jit(step).trace(params, batch, jax.random.key(0))
  assert ('shard_map' in str(traced.jaxpr)) == (devices > 1)
  assert traced.lower(lowering_platforms=('cuda',)).as_text().count('mosaic_gpu') >= 2  # forward and gradients
