"""Decoding with a cache equals one pass, whatever tells the places of tokens and whatever the layers keep."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import model as model_lib
from configs import base
from model import Stream

LENGTH, PROMPT, SLOTS = 14, 8, 16
WINDOWED = {'attention.window': 4, 'attention.pattern': ('local', 'global')}
VARIANTS = {
  'rope, windows': {'positions': 'rope', 'rope.fraction': 0.5, 'rope.local_theta': 100.0, **WINDOWED},
  'rope, windows alone': {'attention.window': 3, 'attention.pattern': ('local',), 'norm_position': 'sandwich'},
  'yarn': {'rope.scaling': 'yarn', 'rope.factor': 4.0, 'rope.original_length': 16},
  'dynamic': {'rope.scaling': 'dynamic', 'rope.factor': 4.0, 'rope.original_length': 16},
  'alibi, windows': {'positions': 'alibi', 'embedding_norm': True, 'num_heads': 2, **WINDOWED},
  't5, windows': {'positions': 't5', 'relative.num_buckets': 8, 'relative.max_distance': 9, **WINDOWED},
  'shaw, windows': {'positions': 'shaw', 'relative.max_distance': 3, **WINDOWED},
  'xlnet': {'positions': 'xlnet', 'norm_position': 'post'},
  'learned': {'positions': 'learned', 'max_length': 14, 'position_offset': 2, 'parallel_blocks': True},
  'sinks and caps': {'attention.sinks': True, 'attention.softcap': 2.0, 'logit_softcap': 3.0, 'head_bias': True},
}


def build(**changes):
  """A model whose vectors are random too, so that biases and sinks matter."""
  model_config = base.get_config().model
  sizes = {'vocab_size': 64, 'num_layers': 2, 'embed_dim': 16, 'num_heads': 4, 'mlp_dim': 24}
  model_config.update(sizes | changes)
  model = model_lib.create(model_config)
  random = np.random.default_rng(0)
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  return model, jax.tree.map(lambda leaf: jnp.asarray(random.normal(scale=0.4, size=leaf.shape), jnp.float32), shapes)


@pytest.mark.parametrize('variant', VARIANTS)
def test_decoding_equals_one_pass(variant):
  """The second row's prompt is shorter: it is padded on the left, by tokens that must not matter."""
  model, params = build(**VARIANTS[variant])
  tokens = np.random.default_rng(1).integers(0, 64, (2, LENGTH)).astype(np.int32)
  padding = np.array([[0], [3]])
  places = np.arange(LENGTH)[None] - padding
  segments = (places >= 0).astype(np.int32)
  whole = [Stream(*(jnp.asarray(x[i : i + 1, padding[i, 0] :]) for x in (tokens, places, segments))) for i in range(2)]
  expected = [model.logits(params, model.hidden(params, stream)[0])[0] for stream in whole]

  prompt = Stream(*(jnp.asarray(x[:, :PROMPT], jnp.int32) for x in (tokens, np.maximum(places, 0), segments)))
  logits, cache = model.prefill(params, prompt, SLOTS)
  steps, extend = [logits], jax.jit(model.extend)
  for i in range(PROMPT, LENGTH):
    logits, cache = extend(params, cache, jnp.asarray(tokens[:, i]), jnp.asarray(places[:, i], jnp.int32))
    steps.append(logits)
  for row in range(2):
    wanted = expected[row][PROMPT - 1 - padding[row, 0] :]
    np.testing.assert_allclose(jnp.stack(steps, 1)[row], wanted, rtol=2e-4, atol=2e-4)


def test_layers_with_a_window_keep_it_alone():
  model, _ = build(**VARIANTS['rope, windows'])
  cache = jax.eval_shape(lambda: model.tower.empty_cache(2, SLOTS))
  assert [keys.shape[1] for keys, _ in cache.layers] == [4, SLOTS]
