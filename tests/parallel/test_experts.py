"""Experts on several devices: the run of one device, and what it costs."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from harness import cells
from harness.layouts import make_layout
from harness.ragged import ragged_all_to_all
from jax import lax

import model as model_lib
import precision
from configs import base
from model import Stream, Visibility, moe
from model.context import for_self_attention
from pallas_kernels import Device, target
from parallel import axes
from parallel.collectives import collectives

SWITCH = {'model__moe__experts_per_token': 1, 'model__moe__capacity_factor': 1.0, 'model__moe__jitter': 0.1}
KINDS = {
  'dropless': ('moe', {}),
  'capacity': ('moe', {'model__moe__capacity_factor': 1.0, 'model__use_bias': True}),
  # A norm behind a single expert would leave its gate no gradient but noise.
  'switch': ('moe', SWITCH | {'model__moe__shared_mlp_dim': 0, 'model__norm_position': 'pre'}),
  'deepseek': (
    'moe',
    {
      'model__moe__router': 'sigmoid',
      'model__moe__selection_bias': True,
      'model__moe__num_experts': 8,
      'model__moe__num_groups': 4,
      'model__moe__groups_per_token': 2,
      'model__moe__experts_per_token': 3,
      'model__moe__normalize': True,
      'model__moe__routed_scale': 2.5,
    },
  ),
  'choosing': (
    'encoder',
    {
      'model__moe__num_experts': 4,
      'model__moe__router': 'expert_choice',
      'model__moe__balance_loss': 0.0,
      'model__moe__mlp_dim': 16,
    },
  ),
  'encoder_decoder': ('encoder_decoder', SWITCH | {'model__moe__num_experts': 4, 'model__moe__every': 2}),
}
ALONE = {'mesh__expert': 4}
LAYOUTS = [
  {'mesh__expert': 2},
  {'mesh__expert': 2, 'mesh__data': 2, 'mesh__fsdp': 2, 'zero_stage': 3},
  {'mesh__expert': 2, 'mesh__tensor': 2, 'mesh__sequence_parallel': True},
  {'mesh__expert': 2, 'mesh__tensor': 2, 'mesh__sequence': 2},
]
MOE = {
  'switch': {'experts_per_token': 1, 'capacity_factor': 1.0, 'use_bias': True},
  'dropless': {'use_bias': True},
  'ragged': {'exchange': 'ragged', 'experts_per_token': 3},
  'choosing': {'router': 'expert_choice', 'balance_loss': 0.0, 'activation': 'gelu'},
}


class Layer:
  """A layer of experts as functions of its parameters, which are all random."""

  def __init__(self, use_bias=False, activation='silu', **changes):
    model_config = base.get_config().model
    model_config.update(
      {
        'vocab_size': 64,
        'num_layers': 2,
        'embed_dim': 8,
        'num_heads': 1,
        'mlp_dim': 8,
        'init_scale': 0.4,
        'use_bias': use_bias,
      }
    )
    model_config.moe.update({'num_experts': 8, 'implementation': 'blocks', 'z_loss': 0.1} | changes)
    self.graph, params = nnx.split(moe.MoE('mlp', model_lib.resolve(model_config), rngs=nnx.Rngs(params=0)))
    random = np.random.default_rng(0)
    noise = lambda x: jnp.asarray(x + 0.2 * random.normal(size=x.shape), jnp.float32)
    self.params = jax.tree.map(noise, nnx.to_pure_dict(params))
    self.x, self.weight = (jnp.asarray(random.normal(size=(8, 12, 8)), jnp.float32) for _ in range(2))
    self.segment_ids = jnp.asarray(np.arange(12) < random.integers(6, 13, (8, 1)), jnp.int32)

  def loss(self, params, x):
    """A number, and output and metrics."""
    x = axes.constrain(x, (axes.BATCH, axes.LENGTH, axes.EMBED))
    stream = Stream(self.segment_ids, self.segment_ids, self.segment_ids)
    y, found = nnx.merge(self.graph, params)(x, for_self_attention(stream, Visibility.BIDIRECTIONAL), None)
    auxiliary = sum(metric.total for name, metric in found.items() if name.startswith('aux/'))
    return jnp.sum(y * self.weight) + auxiliary, (y, found)

  def run(self, layout=None):
    """Loss, output, metrics and gradients, on one device or over a layout."""

    def gradient(params, x):
      with contextlib.nullcontext() if layout is None else axes.activation_sharding(layout):
        return jax.value_and_grad(self.loss, (0, 1), has_aux=True)(params, x)

    return jax.jit(gradient)(self.params, self.x)


ROWS = {'expert': 4, 'data': 2}
WIDTH_AND_LENGTH = {'expert': 2, 'tensor': 2, 'sequence': 2}
QUICK = [('switch', WIDTH_AND_LENGTH), ('dropless', ROWS), ('ragged', WIDTH_AND_LENGTH), ('choosing', ROWS)]
REST = [
  (kind, layout)
  for kind in MOE
  for layout in (ROWS, WIDTH_AND_LENGTH, {'expert': 2, 'sequence': 4})
  if (kind, layout) not in QUICK
]


@pytest.mark.parametrize(
  'kind, layout', [*QUICK, *(pytest.param(*cell, marks=pytest.mark.slow) for cell in REST)], ids=str
)
def test_a_layer_over_devices_is_that_of_one(monkeypatch, kind, layout):
  monkeypatch.setattr(lax, 'ragged_all_to_all', ragged_all_to_all)
  layer = Layer(**MOE[kind])
  with target(Device('tpu' if kind == 'ragged' else 'cpu')):
    found, expected = layer.run(make_layout(**layout)), layer.run()
  for (path, a), b in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True):
    distance = float(jnp.linalg.norm(a - b) / jnp.maximum(jnp.linalg.norm(b), 1e-6))
    assert distance < 1e-5, (jax.tree_util.keystr(path), distance)
  if kind == 'switch':
    assert 0 < found[0][1][1]['moe/dropped_share'].value < 1


def test_a_ragged_exchange_that_cannot_run_is_refused_in_words():
  with pytest.raises(ValueError, match="exchange='ragged' needs .* use 'gather' or 'auto'"):
    Layer(exchange='ragged').run(make_layout(expert=2))


def test_rows_travel_in_the_precision_of_the_products():
  layer, dtypes = Layer(capacity_factor=1.0), []

  def walk(jaxpr):
    for eqn in jaxpr.eqns:
      if eqn.primitive.name == 'all_to_all':
        dtypes.append(str(eqn.invars[0].aval.dtype))
      for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda v: hasattr(v, 'eqns')):
        if hasattr(value, 'eqns'):
          walk(getattr(value, 'jaxpr', value))

  with axes.activation_sharding(make_layout(expert=4)):
    gradient = jax.grad(precision.bf16(layer.loss), (0, 1), has_aux=True)
    walk(jax.make_jaxpr(gradient)(layer.params, layer.x).jaxpr)
  assert dtypes == ['bfloat16'] * 4


def assert_equal_to_one_device(kind, layout, steps):
  stack, changes = KINDS[kind]
  got = cells.run(cells.build(stack, **changes, **layout), steps)
  found = cells.differences(got, _baseline(kind, steps))
  # The optimizer divides a gradient by its own size, which makes the rounding of a small one that of a parameter.
  allowed = lambda path: 3e-5 if path.startswith('params/') else 1e-5
  assert not {path: distance for path, distance in found.items() if not distance < allowed(path)}


@functools.cache
def _baseline(kind, steps):
  stack, changes = KINDS[kind]
  return cells.run(cells.build(stack, **changes), steps)


@pytest.mark.slow
@pytest.mark.parametrize('layout', [ALONE, *LAYOUTS], ids=str)
@pytest.mark.parametrize('kind', KINDS)
def test_experts_over_devices_train_as_on_one(kind, layout):
  assert_equal_to_one_device(kind, layout, 1)


def exchanged(kind, layout):
  """The collectives of a layer of experts in the compiled step: kind, bytes, whether backward."""
  stack, changes = KINDS[kind]
  built = cells.build(stack, **changes, **layout)
  batch = {
    name: jax.ShapeDtypeStruct(values.shape, values.dtype, sharding=built.batch_shardings[name])
    for name, values in cells.batch(built, 0).items()
  }
  text = built.step.lower(built.abstract_state, batch).compile().as_text()
  return [
    (one.kind, one.bytes, 'transpose' in one.scope)
    for one in collectives(text)
    if one.kind not in ('all-reduce',) and one.bytes > 64
  ]


@pytest.mark.slow
def test_rows_travel_twice_in_either_direction_and_weights_never():
  rows, tokens, width = cells.ROWS // 4, cells.LENGTH, 32
  capacity = -(-2 * tokens // 4)
  sent = ('all-to-all', 4 * 4 * rows * capacity * width)
  found = exchanged('capacity', ALONE)
  assert sorted(found) == [(*sent, False)] * 2 + [(*sent, True)] * 2
  whole = 4 * cells.ROWS * tokens * width
  found = [one for one in exchanged('dropless', ALONE) if one[1] >= whole // 4]
  there, back = ('all-gather', whole), ('reduce-scatter', whole)
  assert sorted(found) == sorted([(*there, False), (*there, True), (*back, False), (*back, True)])
