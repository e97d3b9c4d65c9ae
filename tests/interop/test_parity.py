"""Every family against transformers: logits, loss and the gradient of each parameter, on rows with padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import model as model_lib
from tests.interop import goldens

pytestmark = pytest.mark.values_only


# What they have, the quick ones have too; each with experts takes as long as four without.
SLOW = ('deepseek_yarn', 'mixtral', 'qwen3_moe', 'qwen3_moe_window')
NAMES = [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in goldens.NAMES]


@pytest.mark.parametrize('name', NAMES)
def test_equals_transformers(name, tmp_path):
  golden, pretrained = goldens.load(name), goldens.pretrained(name, tmp_path)
  model, mask = model_lib.create(pretrained.config.model), golden['mask']
  tokens = jnp.asarray(golden['tokens'], jnp.int32)
  stream = model_lib.Stream(tokens, jnp.asarray(golden['positions'], jnp.int32), jnp.asarray(mask, jnp.int32))
  labels = np.pad(golden['tokens'][:, 1:], ((0, 0), (0, 1)))
  labels = jnp.asarray(np.where(mask * np.pad(mask[:, 1:], ((0, 0), (0, 1))), labels, -1), jnp.int32)

  def loss(params):
    hidden, _ = model.hidden(params, stream)
    total = model.cross_entropy(params, hidden, labels).total
    return total / jnp.sum(labels >= 0), model.logits(params, hidden)

  (value, logits), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(pretrained.params())
  np.testing.assert_allclose(value, golden['loss'], rtol=1e-5)
  expected = golden['logits']
  assert np.abs(logits * mask[:, :, None] - expected).max() <= 1e-4 * np.abs(expected).max()

  leaves = {jax.tree_util.keystr(path, simple=True, separator='/'): np.asarray(leaf)
            for path, leaf in jax.tree_util.tree_flatten_with_path(gradients)[0]}  # fmt: skip
  wanted = goldens.arrays(golden, 'gradients')
  assert wanted.keys() == pretrained.places.keys()
  scale = max(np.linalg.norm(gradient) for gradient in wanted.values())
  for tensor, place in pretrained.places.items():
    actual = place.join([leaves[path][place.index] for path in place.paths])
    error, size = np.linalg.norm(actual - wanted[tensor]), np.linalg.norm(wanted[tensor])
    # The gradient of a bias on the keys is zero but for rounding: a softmax does not see it.
    assert error <= 1e-3 * size + 1e-7 * scale, f'{tensor}: error {error} of {size}'
