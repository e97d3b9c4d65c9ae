"""Latent attention: what a cache gives, what is counted, what is refused. Its numbers are compared in tests/interop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import model as model_lib
from configs import base
from model import Stream
from training import counting

LATENT = {'key_value_rank': 6, 'query_rank': 5, 'rotary_dim': 4, 'value_dim': 14}


def config_of(**changes):
  config = base.get_config().model
  config.update({'vocab_size': 32, 'num_layers': 1, 'embed_dim': 16, 'num_heads': 2, 'head_dim': 10, 'mlp_dim': 8})
  config.update({'init_scale': 0.5, 'attention.window': 5, 'attention.pattern': ('local',)})
  config.attention.latent.update(LATENT)
  config.update(changes)
  return config


def test_decoding_equals_one_pass():
  model = model_lib.create(config_of())
  params = jax.jit(model.init)(jax.random.key(0))
  length, first = 11, 4
  tokens = jnp.asarray(np.random.default_rng(0).integers(0, 32, (2, length)), jnp.int32)
  positions = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (2, length))
  stream = lambda end: Stream(tokens[:, :end], positions[:, :end], jnp.ones((2, end), jnp.int32))
  whole = jax.jit(lambda params: model.logits(params, model.hidden(params, stream(length))[0]))(params)
  logits, cache = jax.jit(lambda params: model.prefill(params, stream(first), length))(params)
  steps, extend = [logits], jax.jit(model.extend)
  for i in range(first, length):
    logits, cache = extend(params, cache, tokens[:, i], positions[:, i])
    steps.append(logits)
  np.testing.assert_allclose(jnp.stack(steps, 1), whole[:, first - 1 :], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('rank', [0, 5])
def test_counts_are_those_of_the_matrices(rank):
  model = model_lib.create(config_of(**{'attention.latent.query_rank': rank}))
  leaves = jax.tree_util.tree_leaves_with_path(jax.eval_shape(model.init, jax.random.key(0)))
  matrices = sum(leaf.size for path, leaf in leaves if 'norm' not in jax.tree_util.keystr(path))
  attended = 6 * 2 * (10 + 14) * 5  # two heads, keys and values, five tokens
  assert counting.flops_per_token(model, 100) == 6 * matrices + attended


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'num_kv_heads': 1}, 'model.num_kv_heads=1 does not go with'),
    ({'positions': 'alibi'}, "set model.positions='rope'"),
    ({'attention.latent.rotary_dim': 12}, 'the head has 10 dimensions'),
    ({'attention.latent.rotary_dim': 3}, 'rotates pairs'),
    (
      {'attention.latent.key_value_rank': 0},
      'model.attention.latent.query_rank=5 is of latent attention, which is off',
    ),
  ],
)
def test_mistakes_are_refused_in_words(changes, words):
  with pytest.raises(ValueError, match=words):
    model_lib.create(config_of(**changes))
