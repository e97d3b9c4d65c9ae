"""Positions against what papers say, written out in float64 without the code under test."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import model as model_lib
from configs import base
from model import Stream, Visibility
from model import positions as pos


def rope(**values):
  rope_config = base.get_config().model.rope
  rope_config.update(values)
  return rope_config


def angles(rope_config, positions, head_dim=64):
  """Angles of one row [L, K / 2] and the factor on cosines."""
  cos, sin = pos.rotation(jnp.asarray([positions], jnp.int32), rope_config, head_dim)
  magnitude = np.sqrt(np.float64(cos[0, :, 0]) ** 2 + np.float64(sin[0, :, 0]) ** 2)
  return np.arctan2(sin[0, :, 0], cos[0, :, 0]), magnitude


def by_wavelength(scaling):
  """The frequency of each pair of 64 dimensions: theta^(-2i/64), changed by what a scaling does to a wave."""
  return [scaling(10000.0 ** (-2 * i / 64), i) for i in range(32)]


def llama3(frequency, _):
  wavelength = 2 * math.pi / frequency
  if wavelength < 128 / 4:
    return frequency
  if wavelength > 128 / 1:
    return frequency / 8
  smooth = (128 / wavelength - 1) / (4 - 1)
  return (1 - smooth) * frequency / 8 + smooth * frequency


def yarn(frequency, i):
  dimension = lambda turns: 64 * math.log(128 / (turns * 2 * math.pi)) / (2 * math.log(10000.0))
  low, high = math.floor(dimension(8)), math.ceil(dimension(1))
  stretched = min(max((i - low) / (high - low), 0), 1)
  return frequency / 8 * stretched + frequency * (1 - stretched)


@pytest.mark.parametrize(
  'values, frequencies, magnitude',
  [
    ({'scaling': 'none', 'factor': 1.0}, by_wavelength(lambda f, _: f), 1.0),
    ({'scaling': 'linear'}, by_wavelength(lambda f, _: f / 8), 1.0),
    ({'scaling': 'llama3'}, by_wavelength(llama3), 1.0),
    ({'scaling': 'yarn', 'beta_fast': 8.0}, by_wavelength(yarn), 0.1 * math.log(8) + 1),
    ({'scaling': 'yarn', 'beta_fast': 8.0, 'attention_factor': 0.5}, by_wavelength(yarn), 0.5),
    ({'scaling': 'dynamic'}, [(10000.0 * (8 * 256 / 128 - 7) ** (64 / 62)) ** (-2 * i / 64) for i in range(32)], 1.0),
  ],
  ids=lambda value: value.get('scaling', '') if isinstance(value, dict) else '',
)
def test_wavelengths_are_rescaled_as_published(values, frequencies, magnitude):
  rope_config = rope(**{'factor': 8.0, 'original_length': 128, **values})
  found, factor = angles(rope_config, [0, 1, 3, 255])
  turned = np.outer([0, 1, 3, 255], frequencies)
  np.testing.assert_allclose(np.exp(1j * found), np.exp(1j * turned), atol=1e-4)
  np.testing.assert_allclose(factor, magnitude, rtol=1e-5)


def test_a_dynamic_scaling_leaves_short_texts_alone():
  short = angles(rope(scaling='dynamic', factor=8.0, original_length=128), range(128))[0]
  np.testing.assert_allclose(np.exp(1j * short), np.exp(1j * angles(rope(), range(128))[0]), atol=1e-5)


def test_slopes_are_those_of_the_paper_for_any_number_of_heads():
  np.testing.assert_allclose(pos.alibi_slopes(8), [2.0**-i for i in range(1, 9)])
  np.testing.assert_allclose(pos.alibi_slopes(6), [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3])
  assert [len(pos.alibi_slopes(heads)) for heads in (1, 7, 12, 112)] == [1, 7, 12, 112]


def bucket(distance, num_buckets, max_distance, bidirectional):
  """Raffel et al. 2020: half of the buckets one distance each, the others in logarithmic steps."""
  first = 0
  if bidirectional:
    num_buckets //= 2
    first, distance = num_buckets * (distance > 0), abs(distance)
  else:
    distance = max(-distance, 0)
  exact = num_buckets // 2
  if distance < exact:
    return first + distance
  steps = math.log(distance / exact) / math.log(max_distance / exact) * (num_buckets - exact)
  return first + min(exact + int(steps + 1e-6), num_buckets - 1)


@pytest.mark.parametrize('num_buckets, max_distance', [(32, 128), (8, 20)])
@pytest.mark.parametrize('bidirectional', [False, True])
def test_buckets_are_exact_near_and_logarithmic_far(num_buckets, max_distance, bidirectional):
  distances = np.arange(-300, 301)
  expected = [bucket(int(d), num_buckets, max_distance, bidirectional) for d in distances]
  np.testing.assert_array_equal(
    pos.t5_buckets(jnp.asarray(distances), num_buckets, max_distance, bidirectional), expected
  )


@pytest.mark.parametrize('first', [0, 3])
def test_pairs_find_the_value_of_their_distance(first):
  queries, keys = 3, 7
  distances = np.asarray(pos.distances(queries, keys, first))
  own = np.random.default_rng(0).normal(size=(2, queries, len(distances))).astype(np.float32)
  found, shared = pos.of_pairs(jnp.asarray(own), keys), pos.of_pairs(jnp.asarray(own[:, :1]), keys)
  for i in range(queries):
    for j in range(keys):
      place = list(distances).index(j - (first + i))
      np.testing.assert_array_equal(found[:, i, j], own[:, i, place])
      np.testing.assert_array_equal(shared[:, i, j], own[:, 0, place])
  back = pos.between(found, queries)
  np.testing.assert_allclose(pos.of_pairs(back, keys), found)
  np.testing.assert_allclose(np.sum(back), np.sum(found), rtol=1e-5)


def test_shaw_attention_is_that_of_the_paper():
  """Equations 3 and 4 of Shaw et al. 2018 in float64, for a row of two documents."""
  model_config = base.get_config().model
  model_config.update({'vocab_size': 32, 'num_layers': 1, 'embed_dim': 8, 'num_heads': 2, 'num_kv_heads': 1})
  model_config.update({'positions': 'shaw', 'relative.max_distance': 2})
  model = model_lib.create(model_config)
  random = np.random.default_rng(0)
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  params = jax.tree.map(lambda leaf: random.normal(scale=0.7, size=leaf.shape), shapes)
  own = jax.tree.map(lambda leaf: leaf[0], params['layers'])['attention']
  x, segments = random.normal(size=(7, 8)), np.array([1, 1, 1, 1, 2, 2, 2])
  q = np.einsum('ld,dhk->lhk', x, own['query']['kernel'])
  k, v = (np.einsum('ld,dhk->lhk', x, own[name]['kernel'])[:, 0] for name in ('key', 'value'))
  attended = np.zeros_like(q)
  for i in range(7):
    seen = [j for j in range(7) if segments[i] == segments[j]]
    clipped = [min(max(j - i, -2), 2) + 2 for j in seen]
    for head in range(2):
      logits = [q[i, head] @ (k[j] + own['relative_key']['table'][c]) / 2 for j, c in zip(seen, clipped)]
      weights = np.exp(logits) / np.sum(np.exp(logits))
      values = [v[j] + own['relative_value']['table'][c] for j, c in zip(seen, clipped)]
      attended[i, head] = sum(w * value for w, value in zip(weights, values))
  expected = np.einsum('lhk,hkd->ld', attended, own['out']['kernel'])

  module, context = attention_of(model, params, segments)
  found, _ = module(jnp.asarray(x[None], jnp.float32), jnp.asarray(x[None], jnp.float32), context, None, None)
  np.testing.assert_allclose(found[0], expected, atol=1e-5)


def attention_of(model, params, segments):
  from flax import nnx

  from model.attention import Attention

  module = Attention('attention', model.config, 0, 'shaw', rngs=nnx.Rngs(params=jax.random.key(0)))
  nnx.update(module, jax.tree.map(lambda leaf: jnp.asarray(leaf[0], jnp.float32), params['layers']['attention']))
  tokens = jnp.zeros((1, len(segments)), jnp.int32)
  stream = Stream(tokens, jnp.arange(len(segments))[None], jnp.asarray(segments[None], jnp.int32))
  return module, model.tower.context(params, stream, Visibility.BIDIRECTIONAL)


@pytest.mark.parametrize('kind', ['rope', 'sinusoidal', 'none', 'alibi', 't5', 'shaw', 'xlnet'])
def test_what_does_not_learn_positions_reads_longer_texts(kind):
  model_config = base.get_config().model
  model_config.update({'vocab_size': 32, 'num_layers': 1, 'embed_dim': 8, 'num_heads': 2, 'positions': kind})
  model_config.max_length = 4
  model = model_lib.create(model_config)
  params = jax.eval_shape(model.init, jax.random.key(0))
  tokens = jax.ShapeDtypeStruct((1, 9), jnp.int32)
  assert jax.eval_shape(model.hidden, params, Stream(tokens, tokens, tokens))[0].shape == (1, 9, 8)
  assert model.length_limit == math.inf


def test_learned_positions_end_in_words():
  model_config = base.get_config().model
  model_config.update({'vocab_size': 32, 'num_layers': 1, 'embed_dim': 8, 'num_heads': 2, 'max_length': 4})
  model_config.positions = 'learned'
  model, params = model_lib.build(model_config)
  tokens = jnp.arange(5, dtype=jnp.int32)[None]
  with pytest.raises(ValueError, match='row of 5 tokens is longer than the model.max_length=4 positions'):
    model.hidden(params, Stream(tokens, tokens, jnp.ones_like(tokens)))


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'rope.fraction': 1.5}, 'at most 1'),
    ({'rope.fraction': 0.3}, 'dimensions would turn'),
    ({'rope.factor': 2.0}, 'do not agree'),
    ({'rope.scaling': 'yarn', 'rope.factor': 2.0}, 'needs model.rope.original_length'),
    ({'position_offset': 2}, "model.positions='learned'"),
    ({'positions': 't5', 'relative.num_buckets': 6}, 'multiple of 4'),
    ({'first_norm': False, 'norm_position': 'post'}, "model.norm_position='pre'"),
    ({'parallel_blocks': True, 'norm_position': 'post'}, 'model.parallel_blocks=False'),
    ({'start_token': 1}, "model.family='encoder_decoder'"),
    ({'family': 'encoder_decoder', 'token_types': 2}, 'has no token types'),
  ],
  ids=str,
)
def test_mistakes_are_refused_in_words(changes, words):
  model_config = base.get_config().model
  model_config.update({'vocab_size': 32, **changes})
  with pytest.raises(ValueError, match=words):
    model_lib.create(model_config)
