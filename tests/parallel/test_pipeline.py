"""The pipeline: its schedule by simulation, its result against applying the layers one after the other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from harness.layouts import make_layout
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from parallel import axes as ax
from parallel import pipeline
from parallel.pipeline import Schedule

SIZES = st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4))


@given(SIZES)
def test_every_stage_sees_every_microbatch_just_after_the_stage_before_it(sizes):
  devices, groups, rounds = sizes
  schedule = Schedule(devices, devices * groups, rounds)
  ticks = np.arange(schedule.ticks)[:, None]
  turn, microbatch, busy = map(np.asarray, schedule.work(ticks, np.arange(devices)))
  done = {}
  for tick, device in np.argwhere(busy):
    done[int(turn[tick, device]) * devices + int(device), int(microbatch[tick, device])] = tick
  assert len(done) == busy.sum() == schedule.stages * schedule.microbatches
  for (stage, batch), tick in done.items():
    assert stage == 0 or done[stage - 1, batch] == tick - 1  # what a neighbour has handed on is used at once
  idle = (~busy).sum(axis=0)
  assert set(idle) == {devices - 1} and idle[0] / schedule.ticks == schedule.bubble


@given(SIZES)
def test_layers_are_traded_one_for_one(sizes):
  devices, _, rounds = sizes
  sent = np.stack(pipeline._exchanges(devices, rounds))  # [exchange, device], a place among the device's stages
  assert all(sorted(places) == list(range(rounds)) for places in sent.T)
  targets = (np.arange(devices) * rounds + sent) % devices
  assert all(sorted(of_exchange) == list(range(devices)) for of_exchange in targets)


def test_numbers_that_make_no_pipeline_are_refused():
  with pytest.raises(ValueError, match='takes a multiple of 4 microbatches, not 6'):
    Schedule(4, 6)
  with pytest.raises(ValueError, match=r'mesh.microbatches=3 must be a multiple of mesh.pipeline=2; .*microbatches=4'):
    make_layout(pipeline=2, microbatches=3)
  with pytest.raises(ValueError, match='are of a pipeline, and mesh.pipeline=1 makes none'):
    make_layout(microbatches=4)
  layout = make_layout(pipeline=2, pipeline_rounds=2)
  with pytest.raises(ValueError, match=r'w: the layers repeat 6 times, .* the 4 stages .* one of 2, 3, 6'):
    layout.parameter_spec(('layers', 'embed'), (6, 8), 'w')
  assert '8 microbatches through 4 stages on 2 devices in 2 rounds; each device is idle 1 of 17 ticks, 5.9%' in (
    make_layout(pipeline=2, microbatches=8, pipeline_rounds=2).schedule.describe()
  )


WIDTH, HIDDEN, ROWS = 8, 12, 16


def layer(params, x, scale):
  return x + scale * jnp.tanh(x @ params['in']) @ params['out']


def one_after_the_other(params, x, weights, scale):
  """Loss of all layers in a loop; the second sum is over what leaves each layer."""
  total = 0.0
  for i in range(len(params['in'])):
    x = layer(jax.tree.map(lambda leaf, i=i: leaf[i], params), x, scale)
    total += jnp.sum(weights[:, None] * x**2)
  return jnp.sum(jnp.sin(x)) + 0.1 * total


def in_stages(layout, params, x, weights, scale):
  def on_part(params, x, scale):
    return x + scale * ax.sum_over(ax.MLP, jnp.tanh(x @ params['in']) @ params['out'])

  def stage(params, x, weights, scale, number):
    total = 0.0
    for i in range(len(params['in'])):
      own = jax.tree.map(lambda leaf, i=i: leaf[i], params)
      kernels = {'in': ax.Used((ax.EMBED, ax.MLP)), 'out': ax.Used((ax.MLP, ax.EMBED))}
      x = ax.on_each_device(on_part, (kernels, (ax.BATCH, None), None), (ax.BATCH, None))(own, x, scale)
      total += jnp.sum(weights[:, None] * x**2)
    return ax.constrain(x, (ax.BATCH, None)), {'total': total}

  with ax.activation_sharding(layout):
    x, sums = ax.through_stages(stage, params, x, weights, scale)
  return jnp.sum(jnp.sin(x)) + 0.1 * jnp.sum(sums['total'])


def arguments(layers):
  normal = lambda *shape: jnp.asarray(np.random.default_rng(0).normal(size=shape) * 0.3, jnp.float32)
  params = {'in': normal(layers, WIDTH, HIDDEN), 'out': normal(layers, HIDDEN, WIDTH)}
  return params, normal(ROWS, WIDTH), jnp.arange(ROWS, dtype=jnp.float32) / ROWS, jnp.float32(0.7)


@pytest.mark.parametrize(
  'layers, mesh',
  [
    (4, {'pipeline': 4, 'tensor': 2, 'microbatches': 8}),
    (6, {'pipeline': 2, 'fsdp': 2, 'microbatches': 4, 'pipeline_rounds': 3}),
    pytest.param(8, {'pipeline': 4, 'data': 2, 'pipeline_rounds': 2}, marks=pytest.mark.slow),
    pytest.param(4, {'pipeline': 2, 'data': 2, 'tensor': 2, 'pipeline_rounds': 2}, marks=pytest.mark.slow),
  ],
  ids=str,
)
def test_the_result_is_that_of_the_layers_one_after_the_other(layers, mesh):
  layout, inputs = make_layout(**mesh), arguments(layers)
  stored = NamedSharding(layout.mesh, PartitionSpec('pipeline'))
  inputs = jax.device_put(inputs[0], stored), *inputs[1:]
  loss, gradients = jax.jit(jax.value_and_grad(functools.partial(in_stages, layout), (0, 1, 3)))(*inputs)
  expected = jax.jit(jax.value_and_grad(one_after_the_other, (0, 1, 3)))(*arguments(layers))
  close = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5)
  jax.tree.map(close, jax.device_get((loss, gradients)), jax.device_get(expected))


def test_rows_know_their_places_in_the_batch():
  layout = make_layout(pipeline=2, data=2, microbatches=4)

  def stage(params, x, places, shared, number):
    of_microbatch = ax.rows(len(x)) == places
    on_device = ax.on_each_device(lambda p: ax.rows(len(p)) == p, ((ax.BATCH,),), (ax.BATCH,))(places)
    return x, jnp.sum((of_microbatch & on_device).astype(jnp.float32))

  def right(x):
    with ax.activation_sharding(layout):
      return ax.through_stages(stage, jnp.zeros((2, 1)), x, jnp.arange(ROWS, dtype=jnp.int32), None)

  x, count = jax.jit(right)(jnp.arange(ROWS))
  np.testing.assert_array_equal(count, [ROWS, ROWS])
  np.testing.assert_array_equal(x, np.arange(ROWS))


def test_rows_that_make_no_microbatches_are_refused():
  words = r'12 rows of text cannot be cut into mesh.microbatches=4 on each of 2 shards'
  layout = make_layout(pipeline=2, data=2, microbatches=4)
  with ax.activation_sharding(layout), pytest.raises(ValueError, match=words):
    ax.through_stages(None, jnp.zeros((2, 1)), jnp.zeros((12, 1)), None, None)


@pytest.mark.optimised
def test_a_further_microbatch_costs_its_stream_and_not_what_its_stages_keep():
  """Bytes by the number of microbatches of one size, in units of such a microbatch of the stream."""
  layout, tokens = make_layout(pipeline=2), 512
  split = NamedSharding(layout.mesh, PartitionSpec('pipeline'))
  on_devices = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=split)
  params = {'in': on_devices(8, 16, 64), 'out': on_devices(8, 64, 16)}

  def stage(params, x, *_):
    for i in range(4):
      x = layer(jax.tree.map(lambda leaf, i=i: leaf[i], params), x, 0.5)
    return x, ()

  def temporary(microbatches):
    schedule = Schedule(2, microbatches)
    loss = lambda params, x: jnp.sum(pipeline.run(stage, params, x, (), (), schedule, layout.mesh)[0] ** 2)
    compiled = jax.jit(jax.grad(loss)).lower(params, on_devices(microbatches, tokens, 16)).compile()
    return compiled.memory_analysis().temp_size_in_bytes / (tokens * 16 * 4)

  kept_in_a_stage = 4 * (1 + 64 / 16)  # the stream and the hidden width, of 4 layers
  assert (temporary(12) - temporary(4)) / 8 < 4 < kept_in_a_stage / 4
