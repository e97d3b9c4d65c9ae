"""Rows through experts on several devices against the same experts on one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from harness.ragged import ragged_all_to_all
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from parallel import exchange

ROWS, WIDTH, EXPERTS, OWNERS = 12, 3, 8, 4
SPLIT = PartitionSpec(('rest', 'owner'))


@pytest.fixture(scope='module')
def mesh():
  return Mesh(np.array(jax.devices()[:8]).reshape(2, 4), ('rest', 'owner'))


def on_devices(mesh, function, *arguments):
  specs = tuple(SPLIT if split else PartitionSpec('owner') for split, _ in arguments)
  values = [value for _, value in arguments]
  return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=SPLIT)(*values)


def value_and_gradients(function, *arguments):
  weight = jnp.asarray(np.random.default_rng(7).normal(size=(8 * ROWS, 2)), jnp.float32)
  loss = lambda *arguments: jnp.sum(function(*arguments) * weight)
  return jax.jit(lambda *args: (function(*args), jax.grad(loss, (0, 1))(*args)))(*arguments)


def assert_same(found, expected):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), found, expected)


def normal(*shape):
  return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def test_equal_shares_come_back_from_their_experts(mesh):
  x, kernel = normal(8, EXPERTS, ROWS, WIDTH), normal(EXPERTS, WIDTH, 2)

  def split(x, kernel):
    def on_device(x, kernel):
      experts = lambda rows: jnp.einsum('ECD,EDF->ECF', rows.reshape(len(kernel), -1, WIDTH), kernel).reshape(-1, 2)
      return exchange.equal(experts, x.reshape(-1, WIDTH), EXPERTS, ('owner',)).reshape(1, EXPERTS, ROWS, 2)

    return on_devices(mesh, on_device, (True, x), (False, kernel)).sum(1).reshape(-1, 2)

  whole = lambda x, kernel: jnp.einsum('NECD,EDF->NCF', x, kernel).reshape(-1, 2)
  assert_same(value_and_gradients(split, x, kernel), value_and_gradients(whole, x, kernel))


def sizes_of(load: str):
  """How many rows each of 8 devices has for each expert; what is left is for none."""
  random = np.random.default_rng(1)
  if load == 'one':
    return np.eye(EXPERTS, dtype=np.int32)[[5] * 8] * ROWS
  sizes = random.multinomial(ROWS, random.dirichlet(np.ones(EXPERTS + 1)), size=8)[:, :EXPERTS]
  return sizes * (0 if load == 'none' else 1)


@pytest.mark.parametrize('load', ['some', 'one', 'none'])
@pytest.mark.parametrize('kind', ['ragged', 'gathered'])
def test_unequal_shares_come_back_from_their_experts(mesh, monkeypatch, kind, load):
  monkeypatch.setattr(lax, 'ragged_all_to_all', ragged_all_to_all)
  sizes = jnp.asarray(sizes_of(load), jnp.int32)
  experts_S = np.stack([np.repeat([*range(EXPERTS), EXPERTS], [*row, ROWS - row.sum()]) for row in sizes_of(load)])
  x, kernel = normal(8 * ROWS, WIDTH), normal(EXPERTS, WIDTH, 2)
  chosen = jnp.asarray(experts_S.reshape(-1), jnp.int32)

  def ragged(x, sizes, kernel):
    def experts(rows, sizes):
      assert len(rows) == OWNERS * ROWS
      own = jnp.repeat(jnp.arange(len(kernel)), sizes, total_repeat_length=len(rows))
      out = jnp.einsum('SD,SDF->SF', rows, kernel[own])
      return jnp.where(jnp.arange(len(rows))[:, None] < sizes.sum(), out, jnp.nan)

    return exchange.ragged(experts, x, sizes[0], ROWS, ('owner',))

  def gathered(x, chosen, kernel):
    def experts(x, chosen):
      own = chosen - lax.axis_index('owner') * len(kernel)
      one_hot = own[:, None] == jnp.arange(len(kernel))
      return jnp.einsum('SD,SE,EDF->SF', x, one_hot.astype(x.dtype), kernel)

    return exchange.gathered(experts, (x, chosen), ('owner',))

  def split(x, kernel):
    function, where = (ragged, sizes) if kind == 'ragged' else (gathered, chosen)
    return on_devices(mesh, function, (True, x), (True, where), (False, kernel))

  padded = lambda kernel: jnp.concatenate([kernel, jnp.zeros((1, WIDTH, 2))])
  whole = lambda x, kernel: jnp.einsum('SD,SDF->SF', x, padded(kernel)[chosen])
  assert_same(value_and_gradients(split, x, kernel), value_and_gradients(whole, x, kernel))


@pytest.mark.parametrize('function, sent', [(exchange.equal, (EXPERTS,)), (exchange.ragged, (jnp.ones(2), 9))])
def test_without_axes_it_is_the_function_itself(function, sent):
  assert function(lambda rows, *_: rows + 1, 4, *sent, ()) == 5
  assert exchange.gathered(lambda a, b: a + b, (2, 3), ()) == 5


def collectives(mesh, function, *arguments):
  """The primitives that exchange something, forward and backward."""
  found = []

  def walk(jaxpr):
    for eqn in jaxpr.eqns:
      if 'all_to_all' in eqn.primitive.name or 'gather' in eqn.primitive.name or 'scatter' in eqn.primitive.name:
        found.append(eqn.primitive.name)
      for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda v: hasattr(v, 'eqns')):
        if hasattr(value, 'eqns'):
          walk(getattr(value, 'jaxpr', value))

  program = jax.make_jaxpr(jax.grad(lambda x: jnp.sum(on_devices(mesh, function, (True, x)) ** 2)))(*arguments)
  walk(program.jaxpr)
  return found


def test_rows_travel_once_there_and_once_back_in_either_direction(mesh):
  identity = lambda rows, *_: jnp.sin(rows)
  equal = functools.partial(exchange.equal, identity, num_experts=EXPERTS, axes=('owner',))
  assert collectives(mesh, equal, normal(8 * EXPERTS, WIDTH)) == ['all_to_all'] * 4
  sizes = jnp.ones(EXPERTS, jnp.int32)
  ragged = lambda x: exchange.ragged(identity, x, sizes + 0 * x[0, 0].astype(int), ROWS, ('owner',))
  found = collectives(mesh, ragged, normal(8 * ROWS, WIDTH))
  assert [name for name in found if name == 'ragged_all_to_all'] == ['ragged_all_to_all'] * 4
  assert 'all_to_all' not in found
