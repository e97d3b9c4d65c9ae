"""The shipped GPT-2 and Llama configs against Hugging Face transformers: logits, loss and every gradient."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import model as model_lib
from configs import gpt2, llama

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / 'golden/transformers.npz')
SIZES = {'vocab_size': 48, 'num_layers': 2, 'embed_dim': 16, 'num_heads': 4, 'mlp_dim': 32}


def gpt2_params(arrays) -> dict:
  """Our tree of GPT-2's arrays; its linear layers are stored [in, out], queries, keys and values side by side."""

  def layer(i):
    get = lambda name: arrays[f'transformer.h.{i}.{name}']
    norm = lambda name: {'scale': get(f'{name}.weight'), 'bias': get(f'{name}.bias')}
    linear = lambda name: {'kernel': get(f'{name}.weight'), 'bias': get(f'{name}.bias')}
    qkv = zip(
      ('query', 'key', 'value'), np.split(get('attn.c_attn.weight'), 3, axis=1), np.split(get('attn.c_attn.bias'), 3)
    )
    attention = {name: {'kernel': kernel.reshape(16, 4, 4), 'bias': bias.reshape(4, 4)} for name, kernel, bias in qkv}
    out = linear('attn.c_proj')
    attention['out'] = {'kernel': out['kernel'].reshape(4, 4, 16), 'bias': out['bias']}
    return {
      'attention_norm': norm('ln_1'),
      'attention': attention,
      'mlp_norm': norm('ln_2'),
      'mlp': {'up': linear('mlp.c_fc'), 'down': linear('mlp.c_proj')},
    }

  return {
    'embedding': {'table': arrays['transformer.wte.weight']},
    'position': {'table': arrays['transformer.wpe.weight']},
    'final_norm': {'scale': arrays['transformer.ln_f.weight'], 'bias': arrays['transformer.ln_f.bias']},
    'layers': jax.tree.map(lambda *layers: np.stack(layers), layer(0), layer(1)),
  }


def llama_params(arrays) -> dict:
  """Our tree of Llama's arrays; its linear layers are stored [out, in]."""

  def layer(i):
    get = lambda name: arrays[f'model.layers.{i}.{name}.weight']
    heads = lambda name: {'kernel': get(f'self_attn.{name}').T.reshape(16, -1, 4)}
    attention = {
      'query': heads('q_proj'),
      'key': heads('k_proj'),
      'value': heads('v_proj'),
      'out': {'kernel': get('self_attn.o_proj').T.reshape(4, 4, 16)},
    }
    mlp = {name: {'kernel': get(f'mlp.{name}_proj').T} for name in ('gate', 'up', 'down')}
    return {
      'attention_norm': {'scale': get('input_layernorm')},
      'attention': attention,
      'mlp_norm': {'scale': get('post_attention_layernorm')},
      'mlp': mlp,
    }

  return {
    'embedding': {'table': arrays['model.embed_tokens.weight']},
    'head': {'table': arrays['lm_head.weight']},
    'final_norm': {'scale': arrays['model.norm.weight']},
    'layers': jax.tree.map(lambda *layers: np.stack(layers), layer(0), layer(1)),
  }


def arrays(prefix):
  return {key.removeprefix(prefix): GOLDEN[key] for key in GOLDEN.files if key.startswith(prefix)}


@pytest.mark.parametrize(
  'name, config, sizes, convert',
  [
    ('gpt2', gpt2.get_config(), {'max_length': 24}, gpt2_params),
    ('llama', llama.get_config('8b'), {'num_kv_heads': 2}, llama_params),
  ],
  ids=['gpt2', 'llama'],
)
def test_equals_transformers(name, config, sizes, convert):
  config.model.update({**SIZES, **sizes})
  model, _ = model_lib.build(config.model)
  tokens = jnp.asarray(GOLDEN['tokens'])
  positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
  segment_ids = jnp.ones_like(tokens)
  params = jax.tree.map(jnp.asarray, convert(arrays(f'{name}/weights/')))

  def loss(params):
    hidden, _ = model.hidden(params, model_lib.Stream(tokens, positions, segment_ids))
    labels = jnp.pad(tokens[:, 1:], ((0, 0), (0, 1)), constant_values=-1)
    total = model.cross_entropy(params, hidden, labels).total
    return total / jnp.sum(labels >= 0), model.logits(params, hidden)

  (value, logits), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
  np.testing.assert_allclose(logits, GOLDEN[f'{name}/logits'], rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(value, GOLDEN[f'{name}/loss'], rtol=1e-5)
  expected = convert(arrays(f'{name}/gradients/'))
  assert jax.tree.structure(gradients) == jax.tree.structure(expected)
  for (path, actual), wanted in zip(jax.tree_util.tree_leaves_with_path(gradients), jax.tree.leaves(expected)):
    error, size = np.linalg.norm(actual - wanted), np.linalg.norm(wanted)
    # The gradient of a bias on the keys is zero but for rounding: a softmax does not see it.
    assert error < 1e-4 * size + 1e-6, f'{jax.tree_util.keystr(path)}: error {error} of {size}'
