"""Encoder-decoders against transformers: encoder, logits, loss and every gradient, with padding on both sides."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import interop
import model as model_lib
from tests.interop import goldens

pytestmark = pytest.mark.values_only


def stream(tokens, mask):
  tokens = jnp.asarray(tokens, jnp.int32)
  positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
  return model_lib.Stream(tokens, positions, jnp.asarray(mask, jnp.int32))


def differ(actual, mask, expected):
  """The largest difference as a share of the largest magnitude."""
  return np.abs(actual * mask[:, :, None] - expected).max() / np.abs(expected).max()


MODELS = [
  name if name in ('t5', 'bart', 'switch') else pytest.param(name, marks=pytest.mark.slow)
  for name in goldens.SEQ2SEQ_NAMES
]
QUICKLY = {'xla_llvm_disable_expensive_passes': True, 'xla_backend_optimization_level': 0}  # compiled, run once


@pytest.mark.parametrize('name', MODELS)
def test_equals_transformers(name, tmp_path):
  golden, pretrained = goldens.load(name), goldens.pretrained(name, tmp_path)
  model = model_lib.create(pretrained.config.model)
  source, target = stream(golden['source'], golden['source_mask']), stream(golden['tokens'], golden['mask'])
  labels = jnp.asarray(golden['labels'], jnp.int32)

  def loss(params):
    hidden, _ = model.hidden(params, source, target)
    total = model.cross_entropy(params, hidden, labels).total
    return total / jnp.sum(labels >= 0), (model.logits(params, hidden), model.encode(params, source)[0])

  step = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=QUICKLY)
  (value, (logits, encoded)), gradients = step(pretrained.params())
  np.testing.assert_allclose(value, golden['loss'], rtol=1e-5)
  assert differ(encoded, golden['source_mask'], golden['encoded']) <= 1e-4
  assert differ(logits, golden['mask'], golden['logits']) <= 1e-4

  leaves = {jax.tree_util.keystr(path, simple=True, separator='/'): np.asarray(leaf)
            for path, leaf in jax.tree_util.tree_flatten_with_path(gradients)[0]}  # fmt: skip
  wanted = goldens.arrays(golden, 'gradients')
  assert wanted.keys() == pretrained.places.keys()
  scale = max(np.linalg.norm(gradient) for gradient in wanted.values())
  for tensor, place in pretrained.places.items():
    actual = place.join([leaves[path][place.index] for path in place.paths])
    error, size = np.linalg.norm(actual - wanted[tensor]), np.linalg.norm(wanted[tensor])
    assert error <= 1e-3 * size + 1e-7 * scale, f'{tensor}: error {error} of {size}'


@pytest.mark.parametrize('name', MODELS)
def test_every_tensor_and_field_comes_back(name, tmp_path):
  pretrained = goldens.pretrained(name, tmp_path / name)
  leaves = {path: np.empty(shape, np.float32) for path, shape in pretrained.shapes.items()}
  for path, index, part in pretrained.parts():
    leaves[path][index] = part
  read = lambda path, index, dtype: leaves[path][index].astype(dtype)
  for origin in (interop.Origin.of(pretrained), interop.Origin()):
    target = tmp_path / f'back{bool(origin.config)}'
    interop.write(target, pretrained.config, pretrained.tokenizer, read, origin, card=lambda family: '')
    before = goldens.arrays(goldens.load(name), 'weights')
    after = safetensors.numpy.load_file(target / 'model.safetensors')
    assert after.keys() == before.keys()
    assert all(after[key].tobytes() == before[key].tobytes() for key in before)
    again = interop.read(target)
    assert again.family is pretrained.family
    assert again.config.model == pretrained.config.model
    if origin.config:
      assert again.original == pretrained.original
