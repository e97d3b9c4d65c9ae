"""Properties of the decoder: who sees whom, equivalent layouts, sizes of known models."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import model as model_lib
from configs import base
from model import Stream
from training import counting


def tiny(**changes):
  """A two-layer model config of width 32 over 64 tokens; names may have a group before a dot."""
  model_config = base.get_config().model
  sizes = {
    'vocab_size': 64,
    'num_layers': 2,
    'embed_dim': 32,
    'num_heads': 4,
    'mlp_dim': 48,
    'max_length': 32,
    'init_scale': 0.2,
  }
  for key, value in {**sizes, **changes}.items():
    *group, name = key.split('.')
    (model_config[group[0]] if group else model_config)[name] = value
  return model_config


def distinct_tokens(rows, length):
  return jnp.asarray(np.stack([np.random.default_rng(i).permutation(64)[:length] for i in range(rows)]), jnp.int32)


def plain(rows, length):
  """Distinct tokens, each row a document of its own."""
  positions = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (rows, length))
  return Stream(distinct_tokens(rows, length), positions, jnp.ones((rows, length), jnp.int32))


def hidden(model, params, stream, rng=None, **options):
  return model.hidden(params, stream, rng, **options)[0]


def influence(model, params, stream, **options):
  """[L, L]: does output i depend on input j? Tokens are distinct, so the gradient by a row of the table is its own."""

  def outputs(table):
    outputs = hidden(model, {**params, 'embedding': {'table': table}}, stream, **options)
    return jnp.sum(jnp.sin(outputs[0]), axis=-1)

  gradients = jax.jit(jax.jacrev(outputs))(params['embedding']['table'])
  return np.abs(np.asarray(gradients)[:, np.asarray(stream.tokens[0])]).max(-1) > 0


VARIANTS = [
  {},
  {'positions': 'learned', 'norm': 'layernorm', 'activation': 'gelu', 'gated_mlp': False, 'use_bias': True},
  {'positions': 'sinusoidal', 'norm_position': 'post', 'activation': 'relu'},
  {'positions': 'none', 'num_kv_heads': 1},
  {'num_kv_heads': 2, 'attention.qk_norm': True, 'activation': 'gelu_tanh'},
  {'tie_embeddings': False, 'head_dim': 16},
]


@pytest.mark.parametrize('changes', VARIANTS, ids=str)
def test_an_output_depends_on_exactly_the_inputs_up_to_it(changes):
  model, params = model_lib.build(tiny(**changes))
  seen = influence(model, params, plain(1, 9))
  np.testing.assert_array_equal(seen, np.tril(np.ones((9, 9), bool)))


def test_no_output_depends_on_another_document_or_on_padding():
  model, params = model_lib.build(tiny())
  segment_ids = jnp.asarray([[1, 1, 1, 2, 2, 3, 3, 3, 0, 0]])
  positions = jnp.asarray([[0, 1, 2, 0, 1, 0, 1, 2, 0, 0]])
  seen = influence(model, params, Stream(distinct_tokens(1, 10), positions, segment_ids))
  ids = np.asarray(segment_ids[0])
  same = np.equal.outer(ids, ids)
  documents = slice(0, 8)
  np.testing.assert_array_equal(seen[documents, documents], (np.tril(same))[documents, documents])
  assert not seen[documents, 8:].any()


@pytest.mark.parametrize('positions', ['rope', 'none'])
def test_relative_positions_do_not_notice_a_shift(positions):
  model, params = model_lib.build(tiny(positions=positions))
  stream = plain(2, 12)
  here, there = (
    hidden(model, params, dataclasses.replace(stream, positions=stream.positions + shift)) for shift in (0, 100)
  )
  np.testing.assert_allclose(here, there, atol=2e-5)


@pytest.mark.parametrize('positions', ['rope', 'learned', 'sinusoidal'])
def test_order_matters_exactly_when_there_are_positions(positions):
  """The last output attends to a set: without positions, permuting what came before does not change it."""
  stream = plain(1, 8)
  swapped = dataclasses.replace(stream, tokens=stream.tokens[:, jnp.asarray([3, 1, 2, 0, 4, 5, 6, 7])])

  def last(kind, stream):
    model, params = model_lib.build(tiny(positions=kind, num_layers=1))
    return hidden(model, params, stream)[0, -1]

  np.testing.assert_allclose(last('none', stream), last('none', swapped), atol=1e-5)
  assert np.abs(last(positions, stream) - last(positions, swapped)).max() > 1e-3


def test_scan_unroll_and_remat_are_the_same_function():
  dropout = {'dropout_rate': 0.1, 'attention.dropout_rate': 0.1}
  _, params = model_lib.build(tiny())

  def objective(model, params):
    return jnp.sum(jnp.sin(hidden(model, params, plain(2, 12), jax.random.key(7))))

  results = []
  for layer_loop, remat in itertools.product(('scan', 'unroll'), ('none', 'full', 'selective')):
    model = model_lib.create(tiny(layer_loop=layer_loop, remat=remat, **dropout))
    results.append(jax.jit(jax.value_and_grad(functools.partial(objective, model)))(params))
  expected = results[0]
  for result in results[1:]:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-4), result, expected)


def test_scanned_program_does_not_grow_with_depth():
  def size(num_layers):
    model = model_lib.create(tiny(num_layers=num_layers, layer_loop='scan'))
    params = jax.eval_shape(model.init, jax.random.key(0))
    return len(str(jax.make_jaxpr(model.hidden)(params, plain(1, 4))))

  assert size(8) < 1.05 * size(2)


def test_grouped_heads_equal_many_heads_with_repeated_weights():
  grouped, params = model_lib.build(tiny(num_kv_heads=2))
  full = model_lib.create(tiny())
  repeated = jax.tree.map(lambda x: x, params)
  for name in ('key', 'value'):
    repeated['layers']['attention'][name]['kernel'] = jnp.repeat(
      params['layers']['attention'][name]['kernel'], 2, axis=2
    )
  stream = plain(2, 12)
  np.testing.assert_allclose(hidden(grouped, params, stream), hidden(full, repeated, stream), atol=1e-5)


def test_dropout_zeroes_a_share_and_keeps_the_mean():
  from model import layers

  x = layers.dropout(jnp.ones(100_000), 0.3, jax.random.key(0))
  assert abs(float(jnp.mean(x == 0)) - 0.3) < 0.01
  assert abs(float(jnp.mean(x)) - 1) < 0.01


@pytest.mark.parametrize('key', ['dropout_rate', 'attention.dropout_rate'])
def test_each_dropout_acts_only_with_a_key(key):
  stream = plain(2, 12)
  model, params = model_lib.build(tiny(**{key: 0.5}))
  reference, _ = model_lib.build(tiny())
  call = lambda m, rng: np.asarray(hidden(m, params, stream, rng))
  np.testing.assert_array_equal(call(model, None), call(reference, None))
  np.testing.assert_array_equal(call(model, jax.random.key(1)), call(model, jax.random.key(1)))
  assert np.abs(call(model, jax.random.key(1)) - call(model, jax.random.key(2))).max() > 1e-3


def test_initialisation_follows_the_config():
  def stds(**changes):
    _, params = model_lib.build(tiny(embed_dim=128, mlp_dim=512, num_layers=8, **changes))
    mlp = params['layers']['mlp']
    return float(jnp.std(mlp['up']['kernel'])), float(jnp.std(mlp['down']['kernel']))

  np.testing.assert_allclose(stds(init_scale=0.02), (0.02, 0.02 / 4), rtol=0.02)
  np.testing.assert_allclose(stds(init_scale=0.02, init_depth_scaling=False), (0.02, 0.02), rtol=0.02)
  np.testing.assert_allclose(stds(init='fan_in', init_scale=1.0), (128**-0.5, 512**-0.5 / 4), rtol=0.02)
  np.testing.assert_allclose(
    stds(init='xavier', init_scale=1.0), (640**-0.5 * 2**0.5,) * 1 + (640**-0.5 * 2**0.5 / 4,), rtol=0.02
  )


def test_layers_and_seeds_differ():
  _, params = model_lib.build(tiny())
  _, other = model_lib.build(tiny(), seed=1)
  kernel = params['layers']['mlp']['up']['kernel']
  assert float(jnp.abs(kernel[0] - kernel[1]).max()) > 0.01
  assert float(jnp.abs(kernel - other['layers']['mlp']['up']['kernel']).max()) > 0.01


def test_logical_axes_name_every_dimension():
  model = model_lib.create(
    tiny(use_bias=True, norm='layernorm', positions='learned', tie_embeddings=False, **{'attention.qk_norm': True})
  )
  params = jax.eval_shape(model.init, jax.random.key(0))
  jax.tree.map(
    lambda leaf, axes: len(axes) == leaf.ndim or pytest.fail(f'{leaf.shape} {axes}'), params, model.logical_axes()
  )
  kernel = model.logical_axes()['layers']['attention']['out']['kernel']
  assert kernel == ('layers', 'heads', 'head_dim', 'embed')


@pytest.mark.parametrize(
  'name, changes, expected',
  [
    (
      'GPT-2 small',
      {
        'vocab_size': 50257,
        'num_layers': 12,
        'embed_dim': 768,
        'num_heads': 12,
        'mlp_dim': 3072,
        'max_length': 1024,
        'positions': 'learned',
        'norm': 'layernorm',
        'use_bias': True,
        'gated_mlp': False,
        'activation': 'gelu_tanh',
      },
      124_439_808,
    ),
    (
      'Llama 3 8B',
      {
        'vocab_size': 128256,
        'num_layers': 32,
        'embed_dim': 4096,
        'num_heads': 32,
        'num_kv_heads': 8,
        'mlp_dim': 14336,
        'tie_embeddings': False,
      },
      8_030_261_248,
    ),
    (
      'Llama 3.2 1B',
      {'vocab_size': 128256, 'num_layers': 16, 'embed_dim': 2048, 'num_heads': 32, 'num_kv_heads': 8, 'mlp_dim': 8192},
      1_235_814_400,
    ),
  ],
)
def test_parameters_of_known_models(name, changes, expected):
  assert model_lib.create(tiny(**changes)).num_params == expected, name


def test_flops_per_token_of_gpt2_small():
  """85M weights in the blocks, 50257 x 768 in the head, 12 L D T of attention."""
  model = model_lib.create(
    tiny(vocab_size=50257, num_layers=12, embed_dim=768, num_heads=12, mlp_dim=3072, gated_mlp=False)
  )
  expected = 6 * (12 * 12 * 768 * 768 + 50257 * 768) + 12 * 12 * 768 * 1024
  assert counting.flops_per_token(model, 1024) == expected


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'num_heads': 5}, 'num_heads=5 does not divide model.embed_dim=32'),
    ({'num_kv_heads': 3}, 'num_kv_heads=3 does not divide'),
    ({'head_dim': 7}, 'even model.head_dim'),
    ({'vocab_size': 0}, 'set model.vocab_size'),
    ({'positions': 'learned', 'max_length': 0}, 'set model.max_length'),
  ],
)
def test_mistakes_are_refused_in_words(changes, words):
  with pytest.raises(ValueError, match=words):
    model_lib.build(tiny(**changes))
