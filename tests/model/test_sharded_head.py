"""The model's head and cross-entropy in every layout of the mesh: values, gradients, and what devices exchange."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import model as model_lib
import parallel
from configs import base
from pallas_kernels import cross_entropy
from parallel import axes as ax
from parallel.collectives import collectives

# Devices along data and fsdp, the ZeRO stage, and what is exchanged besides single numbers.
LAYOUTS = [
  (8, 1, 0, ['all-reduce']),
  (4, 2, 0, ['all-reduce']),
  (1, 8, 3, ['all-gather', 'reduce-scatter']),
  (2, 4, 3, ['all-gather', 'all-reduce', 'reduce-scatter']),
]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
  monkeypatch.setitem(cross_entropy._CHUNKS, 'cpu', cross_entropy._Chunk(logits=64, tokens=4))


@pytest.fixture(scope='module')
def head():
  config = base.get_config()
  config.model.update({'vocab_size': 40, 'num_layers': 1, 'embed_dim': 16, 'num_heads': 1, 'tie_embeddings': False})
  model = model_lib.create(config.model)
  random = np.random.default_rng(0)
  labels = random.integers(0, 40, (8, 23))
  labels[0] = labels[:, -3:] = -1
  table = jnp.asarray(random.normal(size=(40, 16)), jnp.float32)
  batch = {'hidden': jnp.asarray(random.normal(size=(8, 23, 16)), jnp.float32), 'labels': jnp.asarray(labels)}
  return model, {'head': {'table': table}}, batch


def _compiled(model, params, data, fsdp, zero_stage):
  """value_and_grad of the total as training and evaluation compile it."""
  config = base.get_config()
  config.mesh.update({'data': data, 'fsdp': fsdp})
  layout = parallel.Layout(parallel.make_mesh(config.mesh), zero_stage)
  axes = {'head': model.logical_axes()['head']}

  def total(params, batch):
    result = model.cross_entropy(params, batch['hidden'], batch['labels'], label_smoothing=0.1, z_loss=1e-3)
    return result.total / 3, result

  gradient = lambda params, batch: jax.value_and_grad(total, has_aux=True)(params, batch)
  shardings = parallel.parameter_shardings(params, axes, layout)
  batch_axes = {'hidden': (ax.BATCH, ax.LENGTH, ax.EMBED), 'labels': (ax.BATCH, ax.LENGTH)}
  batch_shardings = parallel.batch_shardings(batch_axes, layout)
  return parallel.compile_evaluation(gradient, layout, shardings, batch_shardings)


@pytest.fixture(scope='module')
def one_device(head):
  model, params, batch = head
  return _compiled(model, params, 1, 1, 0)(params, batch)


@pytest.mark.parametrize('data, fsdp, zero_stage, exchanged', LAYOUTS)
def test_every_layout_gives_what_one_device_gives(head, one_device, data, fsdp, zero_stage, exchanged):
  del exchanged
  model, params, batch = head
  got = _compiled(model, params, data, fsdp, zero_stage)(params, batch)
  for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(one_device), strict=True):
    assert one.dtype == other.dtype
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_a_bias_and_a_cap_are_the_same_in_parts(head):
  _, params, batch = head
  config = base.get_config()
  config.model.update({'vocab_size': 40, 'num_layers': 1, 'embed_dim': 16, 'num_heads': 1, 'tie_embeddings': False})
  config.model.update({'head_bias': True, 'logit_softcap': 3.0, 'logit_scale': 2.0})
  model = model_lib.create(config.model)
  params = {'head': params['head'] | {'bias': jnp.linspace(-1, 1, 40)}}
  whole, parts = (_compiled(model, params, *layout)(params, batch) for layout in ((1, 1, 0), (2, 4, 3)))
  for one, other in zip(*map(jax.tree.leaves, (whole, parts)), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
  assert np.abs(whole[1]['head']['bias']).max() > 1e-2


@pytest.mark.parametrize('data, fsdp, zero_stage, exchanged', LAYOUTS)
@pytest.mark.optimised
def test_nothing_is_exchanged_between_chunks(head, data, fsdp, zero_stage, exchanged):
  model, params, batch = head
  compiled = _compiled(model, params, data, fsdp, zero_stage).lower(params, batch).compile()
  text, vocab_times_embed = compiled.as_text(), 40 * 16
  assert ' while(' in text  # there are several chunks
  found = collectives(text)
  assert not [x for x in found if x.loops]
  # compile_evaluation replicates results, which training does not: the gradients gathered for that are not counted.
  large = [x for x in found if 'linear_cross_entropy' in x.scope and x.bytes > 8]
  assert sorted(x.kind for x in large) == exchanged
  assert all(x.bytes <= 4 * vocab_times_embed + 8 for x in large)
