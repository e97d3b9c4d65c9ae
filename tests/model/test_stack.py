"""Segments: patterns of unlike layers equal a loop over layers by hand, scanned or unrolled, with added-up metrics."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import model as model_lib
from configs import base
from model import Metric, Stream, layers, metrics, pattern, stack
from model.remat import Remat

LENGTH = 12


def local_global(num_layers=8, locals_=5, **changes):
  model_config = base.get_config().model
  model_config.update(
    {
      'vocab_size': 64,
      'num_layers': num_layers,
      'embed_dim': 16,
      'num_heads': 2,
      'mlp_dim': 24,
      'init_scale': 0.2,
      'positions': 'none',
      **changes,
    }
  )
  model_config.attention.update(window=3, pattern=('local',) * locals_ + ('global',))
  return model_config


def test_what_does_not_repeat_is_a_segment_of_its_own():
  def segments(num_layers, kinds, window=4):
    model_config = base.get_config().model
    model_config.num_layers = num_layers
    model_config.attention.update(window=window, pattern=kinds)
    return [
      (tuple(spec.window for spec in segment.pattern), segment.repeats) for segment in pattern.segments(model_config)
    ]

  assert segments(6, ('global',), 0) == [((0,), 6)]
  assert segments(6, ('local',)) == [((4,), 6)]
  assert segments(8, ('local',) * 5 + ('global',)) == [((4, 4, 4, 4, 4, 0), 1), ((4,), 2)]
  assert segments(6, ('local', 'global')) == [((4, 0), 3)]
  assert segments(6, ('local', 'global', 'local', 'global')) == [((4, 0), 2), ((4, 0), 1)]
  assert segments(2, ('local', 'local', 'global')) == [((4,), 2)]


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'window': 4}, 'do not agree'),
    ({'pattern': ('local', 'global')}, 'do not agree'),
    ({'pattern': ()}, 'one or more of'),
    ({'pattern': ('locl',), 'window': 4}, 'choose one of global, local'),
    ({'window': -1}, 'at least 0'),
  ],
)
def test_a_pattern_that_is_none_is_refused_in_words(changes, words):
  model_config = base.get_config().model
  model_config.vocab_size = 64
  with pytest.raises(ValueError, match=words):
    model_config.attention.update(changes)
    model_lib.create(model_config)


def test_names_of_parameters_follow_segments_and_patterns():
  params = jax.eval_shape(model_lib.create(local_global()).init, jax.random.key(0))
  assert {name for name in params if name.startswith('layers')} == {'layers', 'layers_1'}
  assert list(params['layers']) == [f'block_{j}' for j in range(6)]
  assert params['layers']['block_5']['attention']['query']['kernel'].shape == (1, 16, 2, 8)
  assert params['layers_1']['attention']['query']['kernel'].shape == (2, 16, 2, 8)


def by_hand(params, tokens):
  """The logits of a pre-norm decoder without positions, layer by layer; masks from numpy."""
  norm = lambda x, scale: x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-5) * scale
  distance = np.subtract.outer(np.arange(LENGTH), np.arange(LENGTH))
  x = params['embedding']['table'][tokens]
  in_order = [(params['layers'][f'block_{j}'], 0, j < 5) for j in range(6)] + [
    (params['layers_1'], i, True) for i in range(2)
  ]
  for stacked, index, is_local in in_order:
    p = jax.tree.map(lambda leaf, index=index: leaf[index], stacked)
    y = norm(x, p['attention_norm']['scale'])
    q, k, v = (jnp.einsum('BLD,DHK->BLHK', y, p['attention'][name]['kernel']) for name in ('query', 'key', 'value'))
    visible = (distance >= 0) & (distance < (3 if is_local else LENGTH))
    logits = jnp.where(visible, jnp.einsum('BQHK,BSHK->BHQS', q, k) / np.sqrt(8), -1e30)
    attended = jnp.einsum('BHQS,BSHK->BQHK', jax.nn.softmax(logits), v)
    x = x + jnp.einsum('BLHK,HKD->BLD', attended, p['attention']['out']['kernel'])
    y = norm(x, p['mlp_norm']['scale'])
    up, gate = (y @ p['mlp'][name]['kernel'] for name in ('up', 'gate'))
    x = x + (jax.nn.silu(gate) * up) @ p['mlp']['down']['kernel']
  return norm(x, params['final_norm']['scale']) @ params['embedding']['table'].T


def test_local_and_global_layers_equal_a_loop_by_hand_scanned_and_unrolled():
  tokens = jnp.asarray(np.random.default_rng(0).integers(0, 64, (2, LENGTH)), jnp.int32)
  stream = Stream(tokens, jnp.broadcast_to(jnp.arange(LENGTH), (2, LENGTH)), jnp.ones_like(tokens))
  _, params = model_lib.build(local_global())

  def loss(logits):
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), tokens[:, 1:, None], axis=-1))

  def of_model(layer_loop, params):
    model = model_lib.create(local_global(layer_loop=layer_loop))
    return loss(model.logits(params, model.hidden(params, stream)[0]))

  expected = jax.jit(jax.value_and_grad(lambda params: loss(by_hand(params, tokens))))(params)
  for layer_loop in ('scan', 'unroll'):
    result = jax.jit(jax.value_and_grad(functools.partial(of_model, layer_loop)))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), result, expected)


@pytest.mark.slow
def test_dropout_of_segments_is_the_same_scanned_and_unrolled():
  _, params = model_lib.build(local_global())
  tokens = jnp.arange(LENGTH, dtype=jnp.int32)[None]
  stream = Stream(tokens, tokens, jnp.ones_like(tokens))
  scanned, unrolled = (
    jax.jit(model_lib.create(local_global(layer_loop=loop, dropout_rate=0.3)).hidden)(
      params, stream, jax.random.key(0)
    )[0]
    for loop in ('scan', 'unroll')
  )
  np.testing.assert_allclose(scanned, unrolled, rtol=1e-4, atol=1e-5)


def test_a_pattern_of_equal_layers_is_the_plain_model():
  plain = local_global(locals_=0)
  plain.attention.window = 0
  once, twice = (model_lib.create(plain), model_lib.create(plain))
  object.__setattr__(twice.stack, 'segments', (stack.Segment((pattern.BlockSpec(), pattern.BlockSpec()), 4),))
  _, params = model_lib.build(plain)
  paired = {
    **params,
    'layers': {f'block_{j}': jax.tree.map(lambda leaf, j=j: leaf[j::2], params['layers']) for j in range(2)},
  }
  tokens = jnp.arange(LENGTH, dtype=jnp.int32)[None]
  stream = Stream(tokens, tokens, jnp.ones_like(tokens))
  np.testing.assert_array_equal(
    once.hidden(params, stream, jax.random.key(1))[0], twice.hidden(paired, stream, jax.random.key(1))[0]
  )


def test_decoding_through_windows_equals_one_pass():
  model, params = model_lib.build(local_global(3, 1, positions='rope'))
  tokens = jnp.asarray(np.random.default_rng(1).integers(0, 64, (1, LENGTH)), jnp.int32)
  positions = jnp.arange(LENGTH, dtype=jnp.int32)[None]
  whole = model.logits(params, model.hidden(params, Stream(tokens, positions, jnp.ones_like(tokens)))[0])
  start = Stream(tokens[:, :5], positions[:, :5], jnp.ones((1, 5), jnp.int32))
  logits, cache = model.prefill(model.unstacked(params), start, LENGTH)
  steps, extend = [logits], jax.jit(model.extend)
  for i in range(5, LENGTH):
    logits, cache = extend(params, cache, tokens[:, i], positions[:, i])
    steps.append(logits)
  np.testing.assert_allclose(jnp.stack(steps, 1), whole[:, 4:], rtol=1e-4, atol=1e-5)


class Toy(layers.Module):
  """x + scale, which counts what it sees; the second kind of layer counts something of its own too."""

  def __init__(self, scope, spec, *, rngs):
    self.scope, self.spec = scope, spec
    self.scale = nnx.Param(jax.random.normal(rngs.params(), (3,)), axes=('embed',))

  def __call__(self, x, context, key, cache):
    own = {f'of_{self.spec}': Metric(jnp.sum(x), jnp.float32(x.size))}
    return x + self.scale[...] * context, cache, {'calls': Metric(jnp.ones(()), jnp.ones(())), **own}


@pytest.mark.parametrize('layer_loop', ['scan', 'unroll'])
@pytest.mark.parametrize('remat', ['none', 'full'])
def test_metrics_of_all_layers_are_added_up(layer_loop, remat):
  toys = stack.Stack(
    (stack.Segment(('a', 'b'), 3), stack.Segment(('b',), 2)), lambda scope, spec, *, rngs: Toy(scope, spec, rngs=rngs)
  )
  params = toys.init(jax.random.key(0))
  assert toys.logical_axes()['layers']['block_1']['scale'] == ('layers', 'embed')

  def run(params, x):
    x, caches, found = toys.run(params, x, jnp.float32(2.0), layer_loop=layer_loop, remat=Remat(remat))
    assert caches is None
    return x.sum(), (x, found)

  (_, (x, found)), gradient = jax.jit(jax.value_and_grad(run, has_aux=True))(params, jnp.ones((4, 3)))
  scales = [params['layers'][f'block_{j}']['scale'][i] for i in range(3) for j in range(2)]
  scales += list(params['layers_1']['scale'])
  expected, sums = np.ones((4, 3)), {'a': [], 'b': []}
  for kind, scale in zip('abababbb', scales, strict=True):
    sums[kind].append(expected.sum())
    expected = expected + 2.0 * np.asarray(scale)
  np.testing.assert_allclose(x, expected, rtol=1e-5)
  assert found['calls'] == (8, 8)
  for kind, count in (('a', 3), ('b', 5)):
    np.testing.assert_allclose(found[f'of_{kind}'].total, sum(sums[kind]), rtol=1e-5)
    assert found[f'of_{kind}'].weight == 12 * count
  jax.tree.map(lambda g: np.testing.assert_allclose(g, 8.0), gradient)


def test_metrics_add_by_name():
  total = metrics.add({'a': Metric(1.0, 2.0), 'b': Metric(1.0, 1.0)}, {'a': Metric(3.0, 2.0), 'c': Metric(5.0, 0.0)})
  assert total == {'a': (4.0, 4.0), 'b': (1.0, 1.0), 'c': (5.0, 0.0)}
  assert (total['a'].value, total['c'].value) == (1.0, 0.0)
