"""precision.bf16 on any function: values, gradients, dtypes, and what the jaxpr then holds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from ml_collections import config_dict

import precision

BATCH, LENGTH, EMBED, MLP, VOCAB, LAYERS = 3, 8, 32, 64, 40, 2
ROUNDED = 0.01  # relative L2


def _array(seed, *shape, scale=1.0):
  return scale * jax.random.normal(jax.random.key(seed), shape)


def _params():
  return {
    'table': _array(0, VOCAB, EMBED),
    'layers': {
      'up': _array(1, LAYERS, EMBED, MLP, scale=EMBED**-0.5),
      'bias': _array(2, LAYERS, MLP, scale=0.1),
      'down': _array(3, LAYERS, MLP, EMBED, scale=MLP**-0.5),
      'scale': 1 + _array(4, LAYERS, EMBED, scale=0.1),
    },
  }


def _slice(tree, i):
  return jax.tree.map(lambda leaf: leaf[i], tree)


def _layer(x, params):
  with jax.named_scope('norm'):
    centred = x - x.mean(-1, keepdims=True)
    normed = centred * lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-5) * params['scale']
  with jax.named_scope('up'):
    hidden = normed @ params['up'] + params['bias']
  with jax.named_scope('down'):
    return x + jax.nn.gelu(hidden) @ params['down']


def _network(layers):
  """A small residual network as a loss; `layers(x, stacked params) -> x` runs its layers."""

  def loss(params, tokens):
    with jax.named_scope('network'):
      x = layers(params['table'][tokens], params['layers'])
      logits = 0.2 * x @ params['table'].T
    log_probs = jax.nn.log_softmax(logits)
    loss = -jnp.take_along_axis(log_probs, (tokens[..., None] + 1) % VOCAB, axis=-1).mean()
    return loss, {'logits': logits, 'tokens': tokens}

  return loss


def _unrolled(x, params, layer=_layer):
  for i in range(LAYERS):
    x = layer(x, _slice(params, i))
  return x


def _scanned(x, params, layer=_layer):
  return lax.scan(lambda x, slices: (layer(x, slices), None), x, params)[0]


def _branched(x, params):
  for i in range(LAYERS):
    args = x, _slice(params, i)
    x = lax.cond(x.sum() < jnp.inf, _layer, lambda x, params: x, *args)
    x = lax.switch(i, [_layer, lambda x, params: 1.0 * x], *args) if i else x
  return x


def _vmapped(x, params):
  return jax.vmap(_unrolled, in_axes=(0, None))(x, params)


LAYERS_RUN = {
  'unrolled': _unrolled,
  'scan': _scanned,
  'cond': _branched,
  'vmap': _vmapped,
  'jit': functools.partial(_unrolled, layer=jax.jit(_layer)),
  'remat': functools.partial(_unrolled, layer=jax.checkpoint(_layer)),
  'remat in scan': functools.partial(
    _scanned,
    layer=jax.checkpoint(_layer, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable, prevent_cse=False),
  ),
}
TOKENS = jax.random.randint(jax.random.key(9), (BATCH, LENGTH), 0, VOCAB)


def _distance(expected, actual):
  expected, actual = np.asarray(expected, np.float64), np.asarray(actual, np.float64)
  return np.linalg.norm(actual - expected) / max(np.linalg.norm(expected), 1e-30)


def _assert_close(expected, actual, tolerance=ROUNDED):
  assert jax.tree.structure(expected) == jax.tree.structure(actual)
  for (path, a), b in zip(jax.tree.leaves_with_path(expected), jax.tree.leaves(actual)):
    assert (a.shape, a.dtype) == (b.shape, b.dtype), path
    assert _distance(a, b) < tolerance, (jax.tree_util.keystr(path), _distance(a, b))


def _equations(jaxpr, path=''):
  for eqn in jaxpr.eqns:
    name = f'{path}/{eqn.source_info.name_stack}'
    yield name, eqn
    for value in eqn.params.values():
      for inner in value if isinstance(value, (tuple, list)) else [value]:
        if hasattr(inner, 'eqns'):
          yield from _equations(getattr(inner, 'jaxpr', inner), name)


def _products(fn, *args):
  return [
    (path, eqn) for path, eqn in _equations(jax.make_jaxpr(fn)(*args).jaxpr) if eqn.primitive.name == 'dot_general'
  ]


@pytest.mark.parametrize(
  'name', [pytest.param(name, marks=pytest.mark.slow) if name in ('jit', 'remat') else name for name in LAYERS_RUN]
)
def test_loss_aux_and_gradients_stay_within_one_percent(name):
  loss = _network(LAYERS_RUN[name])
  with_gradients = lambda f: jax.jit(jax.value_and_grad(f, has_aux=True))(_params(), TOKENS)
  expected, actual = with_gradients(loss), with_gradients(precision.bf16(loss))
  _assert_close(expected, actual)
  assert _distance(expected[0][1]['logits'], actual[0][1]['logits']) > 1e-5, 'nothing was rounded'


@pytest.mark.parametrize('name', LAYERS_RUN)
def test_every_matmul_takes_bfloat16_and_accumulates_float32(name):
  loss = _network(LAYERS_RUN[name])
  products = _products(jax.value_and_grad(precision.bf16(loss), has_aux=True), _params(), TOKENS)
  assert len(products) >= 3 * 3
  for _, eqn in products:
    assert [var.aval.dtype for var in eqn.invars] == [jnp.bfloat16] * 2, eqn
    assert eqn.params['preferred_element_type'] == jnp.float32, eqn


@pytest.mark.parametrize('name', LAYERS_RUN)
def test_reductions_and_transcendentals_stay_float32(name):
  loss = _network(LAYERS_RUN[name])
  jaxpr = jax.make_jaxpr(jax.value_and_grad(precision.bf16(loss), has_aux=True))(_params(), TOKENS).jaxpr
  float32 = {'reduce_sum', 'reduce_max', 'exp', 'log', 'rsqrt', 'tanh', 'div', 'erf'}
  seen = set()
  for _, eqn in _equations(jaxpr):
    if eqn.primitive.name in float32:
      seen.add(eqn.primitive.name)
      assert all(var.aval.dtype != jnp.bfloat16 for var in eqn.invars), eqn
  assert {'reduce_sum', 'exp', 'log', 'rsqrt', 'tanh'} <= seen


def test_what_the_backward_pass_keeps_is_bfloat16():
  loss = _network(_unrolled)
  _, vjp = jax.vjp(precision.bf16(lambda params: loss(params, TOKENS)[0]), _params())
  kept = [leaf for leaf in jax.tree.leaves(vjp) if getattr(leaf, 'dtype', None) == jnp.float32]
  activations = [leaf.shape for leaf in kept if leaf.shape[:2] == (BATCH, LENGTH) and leaf.shape[-1] in (EMBED, MLP)]
  assert not activations


@pytest.mark.parametrize('name', ['unrolled', 'scan', 'jit', 'remat'])
def test_name_stacks_survive(name):
  loss = _network(LAYERS_RUN[name])
  paths = lambda f: sorted(path.strip('/').replace('//', '/') for path, _ in _products(f, _params(), TOKENS))
  forward = paths(precision.bf16(loss))
  assert forward == paths(loss) and any(path.endswith('/down') for path in forward)


def test_vmap_jit_and_second_derivatives_of_the_transformed_function():
  fn = lambda w, x: jnp.sum(jnp.tanh(0.3 * x @ w))
  w, xs = _array(0, 8, 16, scale=0.3), _array(1, 5, 4, 8)
  transformed = precision.bf16(fn)
  _assert_close(jax.vmap(jax.grad(fn), (None, 0))(w, xs), jax.jit(jax.vmap(jax.grad(transformed), (None, 0)))(w, xs))
  norm = lambda f: jax.grad(lambda w: jnp.sum(jnp.square(jax.grad(f)(w, xs[0]))))
  _assert_close(norm(fn)(w), jax.jit(norm(transformed))(w), tolerance=0.03)


@pytest.mark.optimised
def test_sharded_over_devices_without_gathering_activations():
  mesh = jax.make_mesh((8,), ('d',), axis_types=(jax.sharding.AxisType.Auto,))
  loss = _network(_unrolled)
  tokens = jax.random.randint(jax.random.key(1), (16, LENGTH), 0, VOCAB)
  with_gradients = jax.jit(jax.value_and_grad(precision.bf16(loss), has_aux=True))
  expected = with_gradients(_params(), tokens)
  sharded = jax.device_put(tokens, jax.NamedSharding(mesh, jax.P('d')))
  params = jax.device_put(_params(), jax.NamedSharding(mesh, jax.P()))
  _assert_close(expected, with_gradients(params, sharded), tolerance=3e-3)
  assert 'all-gather' not in with_gradients.lower(params, sharded).compile().as_text()


MATMULS = [
  'td,df->tf',
  'td,fd->ft',
  'dt,df->tf',
  'btd,df->btf',
  'btd,df->fbt',
  'btd,btf->df',
  'btd,btf->fd',
  'btnd,bsnd->bnts',
  'bnst,bnsd->bntd',
  'bndt,sbnd->bnts',
  'bdt,sbd->bts',
  'tbd,dbf->btf',
  'td,d->t',
  'td,sf->tdsf',
  'btnd,btnf->nbdf',
]
SIZES = dict(b=3, n=2, t=16, s=24, d=32, f=40)


@pytest.mark.parametrize('equation', MATMULS)
@pytest.mark.optimised
def test_any_matmul_runs_compiled_between_transpositions(equation):
  """XLA's CPU backend fails at run time on several of these when they are written directly in bfloat16."""
  names, out = equation.split('->')
  a, b, weight = (_array(i, *(SIZES[name] for name in x), scale=0.3) for i, x in enumerate((*names.split(','), out)))

  def fn(a, b, weight):
    y = jnp.einsum(equation, jnp.tanh(a.T).T, b)
    return jnp.sum(jnp.tanh(0.1 * y.T) * weight.T), (y.T, jnp.einsum(equation, a, b).T)

  compared = lambda f: jax.jit(jax.value_and_grad(f, (0, 1), has_aux=True))(a, b, weight)
  (_, expected_aux), expected = compared(fn)  # the sum itself may cancel
  (_, actual_aux), actual = compared(precision.bf16(fn))
  _assert_close((expected_aux, expected), (actual_aux, actual))


WEIGHTS, FACTORS = np.ones((6, 5), np.float32) / 3, jnp.arange(5.0)
FUNCTIONS = {
  'no matmul': (lambda x: jnp.cumsum(jnp.sin(x)), (8,)),
  'sort and index': (lambda x: jnp.sort(x @ x.T, axis=-1)[:, ::2] + x[jnp.array([0, 1, 2, 3]), :2], (4, 4)),
  'relu': (lambda x: jax.nn.relu(x @ x.T) @ x, (6, 6)),
  'while': (lambda x: lax.while_loop(lambda c: c[1] < 3, lambda c: (0.5 * c[0] @ x, c[1] + 1), (x, 0))[0], (6, 6)),
  'fori': (lambda x: lax.fori_loop(0, 3, lambda i, y: jnp.tanh(0.3 * y @ x) + y[i], x), (6, 6)),
  'integers': (lambda x: (x @ x.T, jnp.arange(9).reshape(3, 3) @ jnp.ones((3, 3), jnp.int32), x.shape[0]), (4, 6)),
  'closure': (lambda x: (x @ WEIGHTS) * FACTORS, (4, 6)),
  'batched': (lambda x: jnp.linalg.norm(jnp.einsum('bij,bkj->bik', x, x), axis=(1, 2)), (2, 4, 6)),
  'split': (lambda x: jnp.concatenate(jnp.split(x @ x.T, 2, axis=1)[::-1], axis=0), (6, 6)),
  'long chain': (lambda x: functools.reduce(lambda y, i: jnp.sin(y + i), range(100), x @ x.T), (4, 4)),
  'softmax attention': (lambda x: jax.nn.softmax(0.1 * x @ x.T + jnp.where(jnp.tri(8), 0.0, -1e9)) @ x, (8, 8)),
  'platform': (lambda x: lax.platform_dependent(x, cpu=lambda x: x @ x, default=lambda x: x), (6, 6)),
  'bfloat16 inside': (lambda x: (x.astype(jnp.bfloat16) @ x.T.astype(jnp.bfloat16)).astype(jnp.float32) + 1, (4, 6)),
}


@pytest.mark.parametrize('name', FUNCTIONS)
@pytest.mark.parametrize('wrap', [lambda f: f, jax.jit], ids=['eager', 'jit'])
def test_any_function(name, wrap):
  fn, shape = FUNCTIONS[name]
  x = _array(7, *shape, scale=0.5)
  _assert_close(jax.tree.map(jnp.asarray, fn(x)), wrap(precision.bf16(fn))(x), tolerance=0.02)


def test_custom_jvp_keeps_its_rule():
  @jax.custom_jvp
  def twice_as_steep(x, w):
    return jnp.tanh(x @ w)

  @twice_as_steep.defjvp
  def _(primals, tangents):
    value, tangent = jax.jvp(lambda x, w: jnp.tanh(x @ w), primals, tangents)
    return value, 2 * tangent

  w, x = _array(0, 8, 8, scale=0.3), _array(1, 4, 8)
  loss = lambda w: jnp.sum(twice_as_steep(x @ w, w))
  gradients = jax.grad(precision.bf16(loss))
  _assert_close(jax.grad(loss)(w), gradients(w))
  assert {var.aval.dtype for _, eqn in _products(gradients, w) for var in eqn.invars} == {jnp.dtype(jnp.bfloat16)}


def test_keyword_arguments_pytrees_and_none():
  fn = lambda params, *, batch, rng=None: {'y': (params['w'] @ batch['x'],), 'rng': rng}
  params, batch = {'w': _array(0, 4, 8)}, {'x': _array(1, 8, 2), 'ids': jnp.arange(3)}
  actual = precision.bf16(fn)(params, batch=batch)
  assert actual['rng'] is None
  _assert_close(fn(params, batch=batch), actual)


def test_dropout_is_the_same_with_the_same_key():
  def fn(w, x, key):
    return jnp.where(jax.random.bernoulli(key, 0.5, (16, 16)), x @ w, 0.0)

  args = _array(0, 8, 16), _array(1, 16, 8), jax.random.key(3)
  expected, actual = fn(*args), precision.bf16(fn)(*args)
  np.testing.assert_array_equal(expected == 0, actual == 0)


def test_apply():
  config = config_dict.ConfigDict({'dtype': 'float32', 'float32': ()})
  loss = _network(_unrolled)
  assert precision.apply(config, loss) is loss
  config.dtype = 'bfloat16'
  transformed = precision.apply(config, loss)
  assert all(eqn.invars[0].aval.dtype == jnp.bfloat16 for _, eqn in _products(transformed, _params(), TOKENS))
  config.dtype = 'float16'
  with pytest.raises(ValueError, match='float16.*float32, bfloat16'):
    precision.apply(config, loss)
