"""Who sees whom: every visibility against a mask by hand, cross-attention, and the cache that both share."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import model as model_lib
from configs import base
from model import Stream, Visibility
from model.attention import Attention
from model.context import Cache, Context, Side, for_self_attention

LENGTH = 7
RANKS = np.array([[3, 0, 6, 1, 5, 2, 4]], np.int32)
PREFIX = np.array([[0, 0, 0, 3, 4, 5, 6]], np.int32)


def decoder(**changes):
  model_config = base.get_config().model
  model_config.update(
    {
      'vocab_size': 64,
      'num_layers': 2,
      'embed_dim': 32,
      'num_heads': 4,
      'num_kv_heads': 2,
      'init_scale': 0.3,
      **changes,
    }
  )
  return model_lib.build(model_config)


def row(order=None, length=LENGTH):
  tokens = jnp.asarray(np.random.default_rng(0).permutation(64)[None, :length], jnp.int32)
  return Stream(tokens, jnp.arange(length, dtype=jnp.int32)[None], jnp.ones((1, length), jnp.int32), order)


@pytest.mark.parametrize(
  'visibility, order, mask',
  [
    (Visibility.CAUSAL, None, np.tril(np.ones((LENGTH, LENGTH), bool))),
    (Visibility.BIDIRECTIONAL, None, np.ones((LENGTH, LENGTH), bool)),
    (Visibility.PREFIX, PREFIX, PREFIX[0][None, :] <= PREFIX[0][:, None]),
    (Visibility.ORDER, RANKS, RANKS[0][None, :] <= RANKS[0][:, None]),
  ],
  ids=lambda value: getattr(value, 'value', ''),
)
def test_a_token_depends_on_exactly_those_it_sees(visibility, order, mask):
  model, params = decoder(num_layers=1)
  stream = row(order)

  def outputs(table):
    x, _ = model.hidden({**params, 'embedding': {'table': table}}, stream, visibility=visibility)
    return jnp.sum(jnp.sin(x[0]), axis=-1)

  gradients = np.asarray(jax.jit(jax.jacrev(outputs))(params['embedding']['table']))
  np.testing.assert_array_equal(np.abs(gradients[:, np.asarray(stream.tokens[0])]).max(-1) > 0, mask)


def test_a_prefix_model_generates_as_it_reads():
  model, params = decoder()
  whole = row(PREFIX)
  logits = model.logits(params, model.hidden(params, whole, visibility=Visibility.PREFIX)[0])
  prompt = Stream(whole.tokens[:, :3], whole.positions[:, :3], whole.segment_ids[:, :3])
  step, cache = dataclasses.replace(model, visibility=Visibility.PREFIX).prefill(params, prompt, 8)
  np.testing.assert_allclose(step, logits[:, 2], rtol=1e-4, atol=1e-5)
  for i in range(3, LENGTH):
    step, cache = model.extend(params, cache, whole.tokens[:, i], whole.positions[:, i])
    np.testing.assert_allclose(step, logits[:, i], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
  'visibility, order, cached, words',
  [
    (Visibility.PREFIX, None, False, 'needs Stream.order'),
    (Visibility.ORDER, None, False, 'needs Stream.order'),
    (Visibility.CAUSAL, RANKS, False, 'leave it None'),
    (Visibility.BIDIRECTIONAL, None, True, 'cannot go on'),
    (Visibility.ORDER, RANKS, True, 'cannot go on'),
  ],
)
def test_what_makes_no_sense_is_refused_in_words(visibility, order, cached, words):
  with pytest.raises(ValueError, match=words):
    for_self_attention(row(order), visibility, cache=Cache.empty((0,), 1, 8, 1, 4) if cached else None)


def test_a_window_needs_distances():
  context = for_self_attention(row(RANKS), Visibility.ORDER)
  with pytest.raises(ValueError, match='set model.attention.window=0'):
    context.spec(window=3)
  assert context.spec().window is None


def cross_attention():
  """A module, its context of 5 queries in 2 rows, and 7 keys of another stack: packed, with padding, not rotated."""
  model_config = decoder()[0].config
  module = Attention('cross', model_config, rngs=nnx.Rngs(params=jax.random.key(3)))
  q_segments = jnp.asarray([[1, 1, 2, 2, 2], [1, 1, 1, 1, 1]], jnp.int32)
  k_segments = jnp.asarray([[1, 1, 1, 2, 2, 0, 0], [1, 1, 1, 1, 1, 1, 0]], jnp.int32)
  context = Context(Side(q_segments), Side(k_segments), visibility=Visibility.BIDIRECTIONAL)
  random = np.random.default_rng(0)
  return module, context, *(jnp.asarray(random.normal(size=(2, n, 32)), jnp.float32) for n in (5, 7))


def test_cross_attention_sees_the_other_stack_within_its_segment():
  module, context, x_q, x_kv = cross_attention()
  out, cache = module(x_q, x_kv, context, None, None)
  assert cache is None
  q, k, v = (
    jnp.einsum('BLD,DHK->BLHK', x, projection.kernel[...])
    for x, projection in ((x_q, module.query), (x_kv, module.key), (x_kv, module.value))
  )
  k, v = (jnp.repeat(x, 2, axis=2) for x in (k, v))
  visible = context.queries.segment_ids[:, None, :, None] == context.keys.segment_ids[:, None, None, :]
  logits = jnp.where(visible, jnp.einsum('BQHK,BSHK->BHQS', q, k) / np.sqrt(8), -np.inf)
  expected = jnp.einsum('BHQS,BSHK,HKD->BQD', jax.nn.softmax(logits), v, module.out.kernel[...])
  np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)


def test_a_cross_cache_is_filled_once_and_read_as_it_stands():
  module, context, x_q, x_kv = cross_attention()
  expected, _ = module(x_q, x_kv, context, None, None)
  empty = Cache.empty((0,), 2, 7, 2, 8)
  filling = Context(context.queries, context.keys, length=empty.length, visibility=context.visibility)
  filled, layer = module(x_q, x_kv, filling, None, empty.layers[0])
  again, same = module(x_q, None, context, None, layer)
  np.testing.assert_allclose(filled, expected, rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(again, filled)
  assert same is layer
