"""The interpreter by itself: paths, sources, replaced equations, variables and captures, however layers are run."""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from precision import capture
from precision.interpreter import Interpreter

LAYERS, WIDTH = 3, 4
PARAMS = {
  'table': jnp.arange(20.0).reshape(5, 4) / 20,
  'layers': {'mlp': {'up': jax.random.normal(jax.random.key(0), (LAYERS, WIDTH, WIDTH)) / 2}},
}
TOKENS = jnp.array([[0, 3, 4], [1, 1, 2]])


def _layer(params, x):
  with jax.named_scope('layers'), jax.named_scope('mlp'):
    y = jnp.tanh(x @ params['mlp']['up'])
    return checkpoint_name(x + y, 'output')


def _scanned(params, x, layer=_layer):
  return lax.scan(lambda x, p: (layer(p, x), None), x, params)[0]


def _looped(params, x, layer=_layer):
  call = jax.jit(layer)
  for i in range(LAYERS):
    x = call(jax.tree.map(operator.itemgetter(i), params), x)
  return x


RUNS = {
  'scan': _scanned,
  'loop': _looped,
  'remat in scan': functools.partial(_scanned, layer=jax.checkpoint(_layer)),
  'remat in loop': functools.partial(_looped, layer=jax.checkpoint(_layer)),
}


def _network(run):
  def network(params, tokens):
    x = run(params['layers'], params['table'][tokens])
    with jax.named_scope('head'):
      return x @ params['table'].T

  return network


def _reference():
  x, outputs = PARAMS['table'][TOKENS], []
  for weights in PARAMS['layers']['mlp']['up']:
    x = x + jnp.tanh(x @ weights)
    outputs.append(x)
  return x, jnp.stack(outputs)


@pytest.mark.parametrize('run', RUNS)
def test_a_rule_sees_the_path_and_which_operand_is_which_parameter(run):
  seen = set()

  def rule(site):
    seen.add((site.path, *site.sources))
    return site.bind()

  actual = Interpreter({'dot_general': rule}).transform(_network(RUNS[run]))(PARAMS, TOKENS)
  np.testing.assert_allclose(actual, _network(RUNS[run])(PARAMS, TOKENS), rtol=1e-6)
  assert seen == {('layers/mlp', None, 'layers/mlp/up'), ('head', None, 'table')}


@pytest.mark.parametrize('run', RUNS)
def test_a_rule_replaces_an_equation_and_its_gradient(run):
  halved = Interpreter({'dot_general': lambda site: [0.5 * y for y in site.bind()]}).transform(_network(RUNS[run]))

  def expected(layers):
    params = {'table': PARAMS['table'], 'layers': jax.tree.map(lambda w: 0.5 * w, layers)}
    return jnp.sum(jnp.sin(0.5 * _network(RUNS[run])(params, TOKENS)))

  actual = lambda layers: jnp.sum(jnp.sin(halved({**PARAMS, 'layers': layers}, TOKENS)))
  for a, b in zip(
    jax.tree.leaves(jax.value_and_grad(expected)(PARAMS['layers'])),
    jax.tree.leaves(jax.jit(jax.value_and_grad(actual))(PARAMS['layers'])),
  ):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def _scaled(site):
  """Multiplies a product by a learned scale, initially the largest weight."""
  scale = site.variable('scale', lambda: jnp.max(jnp.abs(site.inputs[1])))
  offset = site.variable('offset', lambda: jnp.zeros(site.inputs[1].shape[-1]), axes=('mlp',))
  return [scale * y + offset for y in site.bind()]


@pytest.mark.parametrize('run', RUNS)
def test_variables_are_stacked_over_layers_however_they_are_run(run):
  interpreter, fn = Interpreter({'dot_general': _scaled}), _network(RUNS[run])
  variables, axes = interpreter.init(fn, PARAMS, TOKENS)
  up = PARAMS['layers']['mlp']['up']
  np.testing.assert_allclose(variables['layers']['mlp']['scale'], jnp.max(jnp.abs(up), axis=(1, 2)))
  assert variables['layers']['mlp']['offset'].shape == (LAYERS, WIDTH)
  assert variables['head']['scale'].shape == ()
  assert axes['layers']['mlp'] == {'scale': ('layers',), 'offset': ('layers', 'mlp')}
  assert axes['head'] == {'scale': (), 'offset': ('mlp',)}


@pytest.mark.parametrize('run', RUNS)
def test_each_layer_reads_its_own_variable_and_has_its_gradient(run):
  interpreter, fn = Interpreter({'dot_general': _scaled}), _network(RUNS[run])
  scales = jnp.array([0.5, 2.0, -1.0])
  offsets = jax.random.normal(jax.random.key(3), (LAYERS, WIDTH))

  def by_hand(scales, offsets):
    x = PARAMS['table'][TOKENS]
    for i, weights in enumerate(PARAMS['layers']['mlp']['up']):
      x = x + jnp.tanh(scales[i] * (x @ weights) + offsets[i])
    return jnp.sum(jnp.sin(3.0 * (x @ PARAMS['table'].T) + 1.0))

  def interpreted(scales, offsets):
    variables = {
      'layers': {'mlp': {'scale': scales, 'offset': offsets}},
      'head': {'scale': jnp.array(3.0), 'offset': jnp.ones(5)},
    }
    return jnp.sum(jnp.sin(interpreter.apply(fn, variables, PARAMS, TOKENS)))

  expected = jax.value_and_grad(by_hand, (0, 1))(scales, offsets)
  actual = jax.jit(jax.value_and_grad(interpreted, (0, 1)))(scales, offsets)
  for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(actual)):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_two_equations_of_one_module_have_variables_of_their_own():
  def fn(params, x):
    with jax.named_scope('pair'):
      return (x @ params) @ params

  variables, _ = Interpreter({'dot_general': _scaled}).init(fn, jnp.ones((2, 2)), jnp.ones((3, 2)))
  assert set(variables['pair']) == {'scale', 'offset', 'scale_1', 'offset_1'}


def test_a_variable_that_is_missing_is_named():
  with pytest.raises(KeyError, match='layers/mlp/scale'):
    Interpreter({'dot_general': _scaled}).apply(_network(_looped), {'head': {'scale': 1.0}}, PARAMS, TOKENS)


@pytest.mark.parametrize('run', RUNS)
def test_capture_gives_what_a_module_returns(run):
  result, values = jax.jit(capture(_network(RUNS[run]), ['*/mlp']))(PARAMS, TOKENS)
  x, outputs = _reference()
  np.testing.assert_allclose(result, x @ PARAMS['table'].T, rtol=1e-5)
  assert set(values) == {'layers/mlp'}
  np.testing.assert_allclose(values['layers/mlp'], outputs, rtol=1e-5)


@pytest.mark.parametrize('run', RUNS)
def test_captures_come_with_gradients(run):
  def loss(layers):
    return jnp.sum(capture(_network(RUNS[run]), ['layers/mlp'])({**PARAMS, 'layers': layers}, TOKENS)[1]['layers/mlp'])

  def by_hand(layers):
    x, total = PARAMS['table'][TOKENS], 0.0
    for weights in layers['mlp']['up']:
      x = x + jnp.tanh(x @ weights)
      total += jnp.sum(x)
    return total

  expected, actual = jax.grad(by_hand)(PARAMS['layers']), jax.jit(jax.grad(loss))(PARAMS['layers'])
  np.testing.assert_allclose(expected['mlp']['up'], actual['mlp']['up'], rtol=1e-4, atol=1e-5)


def test_a_pattern_that_captures_nothing_names_what_there_is():
  with pytest.raises(ValueError, match="'layers/mpl'.*layers/mlp"):
    capture(_network(_scanned), ['layers/mpl'])(PARAMS, TOKENS)


def test_nothing_leaves_a_while_loop():
  def fn(params, x):
    return lax.while_loop(lambda x: jnp.sum(x) > 0, lambda x: _layer({'mlp': {'up': -params}}, x), x)

  with pytest.raises(ValueError, match="'layers/mlp' stands inside a while loop"):
    capture(fn, ['*'])(jnp.eye(2), jnp.ones((2, 2)))


def test_inside_shard_map():
  mesh = jax.make_mesh((8,), ('d',), axis_types=(jax.sharding.AxisType.Auto,))

  def fn(w, x):
    return jax.shard_map(lambda w, x: x @ w, mesh=mesh, in_specs=(jax.P(), jax.P('d')), out_specs=jax.P('d'))(w, x)

  w, x = jnp.eye(4), jnp.arange(64.0).reshape(16, 4)
  halved = Interpreter({'dot_general': lambda site: [0.5 * y for y in site.bind()]}).transform(fn)
  np.testing.assert_allclose(jax.jit(halved)(w, x), 0.5 * x)
  gradient = jax.jit(jax.grad(lambda w: jnp.sum(jnp.square(halved(w, x)))))(w)
  np.testing.assert_allclose(gradient, 0.5 * x.T @ x, rtol=1e-5)
