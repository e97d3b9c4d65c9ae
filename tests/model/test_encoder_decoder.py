"""Encoders and encoder-decoders: who sees whom, decoding from a cache, scopes, two streams, bfloat16."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import model as model_lib
import precision
from model import Stream, Visibility
from model.families import preset
from precision.policy import products

TINY = {'vocab_size': 64, 'num_layers': 2, 'embed_dim': 16, 'num_heads': 2, 'head_dim': 8, 'mlp_dim': 24}
TINY |= {'dropout_rate': 0.0, 'attention.dropout_rate': 0.0}
SMALL_BUCKETS = {'relative.num_buckets': 8, 'relative.max_distance': 6}
PAIRS = {
  't5': ('t5', SMALL_BUCKETS | {'encoder.num_layers': 1, 'encoder.mlp_dim': 12}),
  't5 1.1': ('t5:1.1-small', SMALL_BUCKETS),
  'bart': ('bart', {'max_length': 12}),
  'vanilla': ('vanilla', {}),
}


def tiny(name, **changes):
  """A small model in the shape of a preset, with random vectors too."""
  model_config = preset(name)
  model_config.update(TINY | changes)
  model = model_lib.create(model_config)
  random = np.random.default_rng(0)
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  return model, jax.tree.map(lambda leaf: jnp.asarray(random.normal(scale=0.3, size=leaf.shape), jnp.float32), shapes)


def stream(length, rows=2, seed=0, segments=None):
  tokens = np.stack([np.random.default_rng(seed + i).permutation(64)[:length] for i in range(rows)])
  segments = np.ones_like(tokens) if segments is None else np.broadcast_to(segments, tokens.shape)
  starts = np.array([[np.flatnonzero(row == s)[0] for s in row] for row in segments])
  return Stream(*(jnp.asarray(x, jnp.int32) for x in (tokens, np.arange(length) - starts, segments)))


def influence(function, params, tokens_1xL):
  """[outputs, L]: which output depends on which token of the row, all of which are distinct."""

  def outputs(table):
    return jnp.sum(jnp.sin(function({**params, 'embedding': {'table': table}})[0]), axis=-1)

  gradients = jax.jit(jax.jacrev(outputs))(params['embedding']['table'])
  return np.abs(np.asarray(gradients)[:, np.asarray(tokens_1xL[0])]).max(-1) > 0


def test_a_token_of_an_encoder_sees_its_segment_and_local_layers_a_window_on_both_sides():
  model, params = tiny('modernbert', **{'attention.window': 2, 'attention.pattern': ('local',), 'num_layers': 1})
  packed = stream(9, 1, segments=[1, 1, 1, 1, 1, 2, 2, 2, 0])
  seen = influence(lambda params: model.hidden(params, packed)[0], params, packed.tokens)
  segments, distance = np.asarray(packed.segment_ids[0]), np.abs(np.subtract.outer(np.arange(9), np.arange(9)))
  expected = np.equal.outer(segments, segments) & (distance < 2)
  np.testing.assert_array_equal(seen[:8], expected[:8])


def test_a_decoder_sees_the_source_of_its_segment_and_what_it_wrote_before():
  model, params = tiny('t5', **SMALL_BUCKETS)
  source = stream(6, 1, segments=[1, 1, 1, 2, 2, 0])
  target = stream(5, 1, segments=[1, 1, 2, 2, 2])
  target = dataclasses.replace(target, tokens=jnp.arange(40, 45)[None])
  source = dataclasses.replace(source, tokens=jnp.arange(6)[None])
  tokens = jnp.concatenate([source.tokens, target.tokens], axis=1)
  seen = influence(lambda params: model.hidden(params, source, target)[0], params, tokens)
  q, k = np.asarray(target.segment_ids[0]), np.asarray(source.segment_ids[0])
  expected = np.concatenate([np.equal.outer(q, k), np.tril(np.equal.outer(q, q))], axis=1)
  np.testing.assert_array_equal(seen, expected)


@pytest.mark.parametrize('name', PAIRS)
def test_decoding_from_a_padded_source_equals_one_pass(name):
  family, changes = PAIRS[name]
  model, params = tiny(family, **changes)
  tokens = np.array(stream(6).tokens)
  tokens[:, 0] = model.config.start_token
  target = dataclasses.replace(stream(6), tokens=jnp.asarray(tokens))
  source = stream(7, seed=5, segments=[[1] * 7, [0, 0] + [1] * 5])
  # The second source is the same text without its padding.
  alone = jax.tree.map(lambda x: x[1:, 2:], source)
  expected = model.logits(params, model.hidden(params, source, target)[0])
  second = model.logits(params, model.hidden(params, alone, jax.tree.map(lambda x: x[1:], target))[0])
  np.testing.assert_allclose(expected[1:], second, rtol=1e-4, atol=1e-4)
  logits, cache = model.prefill(model.unstacked(params), source, 8)
  steps, extend = [logits], jax.jit(model.extend)
  for i in range(1, 6):
    logits, cache = extend(params, cache, target.tokens[:, i], jnp.zeros(2, jnp.int32))
    steps.append(logits)
  np.testing.assert_allclose(jnp.stack(steps, 1), expected, rtol=1e-4, atol=1e-4)


def test_loss_of_a_head_with_transform_and_bias_is_that_of_its_logits():
  model, params = tiny('bert', max_length=8, logit_scale=0.5, logit_softcap=4.0)
  tokens = stream(8)

  def losses(params):
    hidden, _ = model.hidden(params, tokens)
    logits = model.logits(params, hidden)
    plain = -jnp.take_along_axis(jax.nn.log_softmax(logits), tokens.tokens[..., None], axis=-1).sum()
    return model.cross_entropy(params, hidden, tokens.tokens).total, plain

  (fused, plain), gradients = jax.jit(lambda params: (losses(params), jax.jacrev(losses)(params)))(params)
  np.testing.assert_allclose(fused, plain, rtol=1e-5)
  for one, other in zip(*map(jax.tree.leaves, gradients)):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def two_streams(**changes):
  model, params = tiny('xlnet', num_layers=1, **changes)
  ranks = jnp.asarray([[3, 0, 6, 1, 5, 2, 4]], jnp.int32)
  return model, params, dataclasses.replace(stream(7, 1), order=ranks)


def test_the_query_stream_sees_what_comes_before_and_not_itself():
  model, params, text = two_streams()
  targets = jnp.asarray([[4, 2, -1]])
  seen = influence(lambda params: model.hidden_two_streams(params, text, targets)[0], params, text.tokens)
  ranks = np.asarray(text.order[0])
  np.testing.assert_array_equal(seen[:2], ranks[None, :] < ranks[np.array([4, 2])][:, None])
  assert not seen[2].any()
  with pytest.raises(ValueError, match="set model.positions='xlnet'"):
    tiny('gpt2', max_length=8)[0].hidden_two_streams(params, text, targets)


def test_token_types_matter_where_the_model_has_them():
  model, params, text = two_streams()
  types = jnp.asarray([[0, 0, 1, 1, 0, 1, 1]], jnp.int32)
  read = lambda types: model.hidden(params, dataclasses.replace(text, token_types=types), visibility=Visibility.ORDER)[
    0
  ]
  np.testing.assert_allclose(read(types), read(1 - types), rtol=1e-5, atol=1e-5)  # only whether two are of one type
  assert np.abs(read(types) - read(0 * types)).max() > 1e-3
  untyped, own = tiny('gpt2', max_length=8)
  with pytest.raises(ValueError, match='model.token_types=0'):
    untyped.hidden(own, dataclasses.replace(text, token_types=types, order=None))


@pytest.mark.parametrize('name', ['t5', pytest.param('bart', marks=pytest.mark.slow)])
def test_scopes_are_paths_and_bfloat16_is_near(name):
  """Products of every module are found by its path, which mixed precision goes by."""
  family, changes = PAIRS[name]
  model, params = tiny(family, **changes)

  def loss(params):
    hidden, _ = model.hidden(params, stream(7, seed=5), stream(6))
    return model.cross_entropy(params, hidden, stream(6).tokens).total

  kernels = {
    jax.tree_util.keystr(path[:-1], simple=True, separator='/')
    for path, _ in jax.tree_util.tree_leaves_with_path(params)
    if path[-1].key == 'kernel'
  }
  found = {path for path, _ in products(jax.make_jaxpr(loss)(params).jaxpr)}
  assert kernels <= found and {'encoder/layers/attention', 'decoder/layers/cross_attention'} <= found, kernels - found
  exact, near = (jax.jit(jax.value_and_grad(f))(params) for f in (loss, precision.bf16(loss)))
  for one, other in zip(*map(jax.tree.leaves, (exact, near))):
    assert np.linalg.norm(one - other) < 0.1 * np.linalg.norm(one) + 1e-3


@pytest.mark.parametrize(
  'changes', [{'parallel_blocks': True}, {'norm_position': 'sandwich', 'norm_unit_offset': True}]
)
def test_parallel_blocks_and_sandwich_norms_by_hand(changes):
  """The arithmetic around attention: both branches read x, or each has norms around it. A token alone attends to
  itself, so that attention is out(value(x))."""
  model, params = tiny('qwen3', num_layers=1, positions='none', num_kv_heads=2, **changes)
  p, one = jax.tree.map(lambda leaf: np.float64(leaf[0]), params['layers']), stream(1, 1)
  offset = int(model.config.norm_unit_offset)

  def norm(x, q):
    return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-6) * (np.float64(q['scale']) + offset)

  def attend(x):
    return np.einsum('bld,dhk,hke->ble', x, p['attention']['value']['kernel'], p['attention']['out']['kernel'])

  def feed(x):
    gate, up = x @ p['mlp']['gate']['kernel'], x @ p['mlp']['up']['kernel']
    return gate / (1 + np.exp(-gate)) * up @ p['mlp']['down']['kernel']

  x = np.float64(params['embedding']['table'][one.tokens])
  if model.config.parallel_blocks:
    x = x + attend(norm(x, p['attention_norm'])) + feed(norm(x, p['mlp_norm']))
  else:
    x = x + norm(attend(norm(x, p['attention_norm'])), p['attention_post_norm'])
    x = x + norm(feed(norm(x, p['mlp_norm'])), p['mlp_post_norm'])
  np.testing.assert_allclose(model.hidden(params, one)[0], norm(x, params['final_norm']), rtol=1e-4, atol=1e-5)
