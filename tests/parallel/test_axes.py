"""Functions on each device's part, by logical axes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from harness.layouts import make_layout

from parallel import axes


class Pair(NamedTuple):
  rows: jax.Array
  total: jax.Array


@pytest.fixture(scope='module')
def layout():
  return make_layout(3, data=4, fsdp=2)


def test_each_device_runs_on_its_part_and_knows_where_it_lies(layout):
  shapes, width = [], ('fsdp',)

  def function(arrays, table, scale):
    shapes.append((arrays['x'].shape, table.shape, scale.shape))
    assert axes.constrain(arrays['x'], (axes.BATCH, axes.EMBED)) is arrays['x']
    assert axes.on_each_device(function, (None,), None) is function
    whole = jax.lax.all_gather(table, width, axis=1, tiled=True)
    places = axes.offset(axes.BATCH, 2) + jnp.arange(2)
    rows = scale * arrays['x'] @ whole.T + places[:, None]
    return Pair(rows, axes.sum_over(axes.BATCH, jnp.sum(rows)))

  def run(arrays, table, scale):
    assert axes.stored_over((axes.VOCAB, axes.EMBED), (5, 6)) == ((), width)
    # A prefix names all arrays below it; the last argument is whole.
    in_axes = ({'x': (axes.BATCH, axes.EMBED)}, axes.Stored((axes.VOCAB, axes.EMBED)), None)
    return axes.on_each_device(function, in_axes, Pair((axes.BATCH, axes.VOCAB), ()))(arrays, table, scale)

  def on_mesh(*arguments):
    with axes.activation_sharding(layout):
      return run(*arguments)

  normal = lambda *shape: np.random.default_rng(0).normal(size=shape).astype(np.float32)
  arguments = ({'x': normal(16, 6)}, normal(5, 6), jnp.float32(2))
  rows, total = jax.jit(on_mesh)(*arguments)
  assert shapes[0] == ((2, 6), (5, 3), ())
  expected = 2 * arguments[0]['x'] @ arguments[1].T + np.arange(16)[:, None]
  np.testing.assert_allclose(rows, expected, rtol=1e-5)
  np.testing.assert_allclose(total, expected.sum(), rtol=1e-4)
  gradient = jax.jit(jax.grad(lambda table: on_mesh(arguments[0], table, arguments[2]).total))(arguments[1])
  np.testing.assert_allclose(gradient, np.tile(2 * arguments[0]['x'].sum(0), (5, 1)), rtol=1e-4)


def test_without_several_devices_it_is_the_function_itself():
  function = lambda x: x
  assert axes.on_each_device(function, ((axes.BATCH,),), (axes.BATCH,)) is function
  with axes.activation_sharding(make_layout()):
    assert axes.on_each_device(function, ((axes.BATCH,),), (axes.BATCH,)) is function
  assert axes.offset(axes.BATCH, 3) == 0 and axes.split_over(axes.BATCH) == ()
  assert axes.stored_over((axes.VOCAB, axes.EMBED), (5, 6)) == ((), ())
  assert axes.sum_over(axes.BATCH, function) is function


@pytest.mark.parametrize(
  'in_axes, words',
  [
    ((axes.BATCH, None), "axis 'batch' of size 12 does not divide over mesh.data times mesh.fsdp .* = 8 devices"),
    (axes.Stored((axes.LENGTH, axes.EMBED)), "axis 'embed' of size 5 .* mesh.fsdp = 2 devices; choose a size"),
  ],
)
def test_what_does_not_divide_is_refused_in_words(layout, in_axes, words):
  with axes.activation_sharding(layout), pytest.raises(ValueError, match=words):
    axes.on_each_device(lambda x: x, (in_axes,), in_axes)(jnp.zeros((12, 5)))
