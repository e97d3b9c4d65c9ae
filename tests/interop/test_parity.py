"""Every family against transformers: logits, loss and the gradient of each parameter, on rows with padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import model as model_lib
from tests.interop import goldens

# Variants of models that the others are near to; experts take several times as long as a dense layer.
_EXPERTS = ('deepseek', 'deepseek_yarn', 'gpt_oss', 'mixtral', 'qwen3_moe', 'qwen3_moe_window')
_SLOW = ('bert_untied', 'modernbert_biases', 'roberta', 'xlnet', *_EXPERTS)
pytestmark = pytest.mark.values_only


@pytest.mark.parametrize(
  'name', [pytest.param(name, marks=[pytest.mark.slow] * (name in _SLOW)) for name in goldens.NAMES]
)
def test_equals_transformers(name, tmp_path):
  golden, pretrained = goldens.load(name), goldens.pretrained(name, tmp_path)
  model = model_lib.create(pretrained.config.model)
  given = {key: jnp.asarray(golden[key], jnp.int32) for key in ('order', 'token_types') if key in golden}
  tokens, positions, mask = (jnp.asarray(golden[key], jnp.int32) for key in ('tokens', 'positions', 'mask'))
  stream = model_lib.Stream(tokens, positions, mask, **given)
  labels, counted = _labels(golden)

  def loss(params):
    if 'targets' in golden:
      hidden, _ = model.hidden_two_streams(params, stream, jnp.asarray(golden['targets'], jnp.int32))
    else:
      visibility = model_lib.Visibility.BIDIRECTIONAL if pretrained.family.name == 'xlnet' else None
      hidden, _ = model.hidden(params, stream, visibility=visibility)
    total = model.cross_entropy(params, hidden, jnp.asarray(labels, jnp.int32)).total
    return total / np.sum(labels >= 0), {'hidden': hidden, 'logits': model.logits(params, hidden)}

  (value, actual), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(pretrained.params())
  np.testing.assert_allclose(value, golden['loss'], rtol=1e-5)
  for key in ('hidden', 'logits'):
    if key in golden:
      expected = golden[key]
      assert np.abs(actual[key] * counted[:, :, None] - expected).max() <= 1e-4 * np.abs(expected).max(), key

  leaves = {jax.tree_util.keystr(path, simple=True, separator='/'): np.asarray(leaf)
            for path, leaf in jax.tree_util.tree_flatten_with_path(gradients)[0]}  # fmt: skip
  wanted = goldens.arrays(golden, 'gradients')
  assert wanted.keys() == pretrained.places.keys() | pretrained.carried.keys()
  assert not any(np.any(wanted[tensor]) for tensor in pretrained.carried)
  scale = max(np.linalg.norm(gradient) for gradient in wanted.values())
  for tensor, place in pretrained.places.items():
    actual = place.join([leaves[path][place.index] for path in place.paths])
    error, size = np.linalg.norm(actual - wanted[tensor]), np.linalg.norm(wanted[tensor])
    # The gradient of a bias on the keys is zero but for rounding: a softmax does not see it.
    assert error <= 1e-3 * size + 1e-7 * scale, f'{tensor}: error {error} of {size}'


def _labels(golden):
  """The next token of each, or of XLNet's second stream the targets, -1 for none; and where outputs count."""
  tokens, mask = golden['tokens'], golden['mask']
  if 'targets' in golden:
    targets = golden['targets']
    return np.where(targets < 0, -1, np.take_along_axis(tokens, np.maximum(targets, 0), axis=1)), targets >= 0
  labels, follows = (np.pad(array[:, 1:], ((0, 0), (0, 1))) for array in (tokens, mask))
  return np.where(mask * follows, labels, -1), mask
