"""The causal loss: what counts, and that packing, padding and the order of rows change nothing."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import model as model_lib
import objectives
from configs import base
from model import Stream

VOCAB = 64


@pytest.fixture(scope='module')
def parts():
  config = base.get_config()
  config.model.update({'vocab_size': VOCAB, 'num_layers': 2, 'embed_dim': 32, 'init_scale': 0.2})
  model, params = model_lib.build(config.model)
  return config, model, params


def batch_of(*rows):
  """Rows of documents (lists of token ids), packed and padded to 24 slots."""
  packed = np.zeros((3, len(rows), 24), np.int32)
  for i, documents in enumerate(rows):
    start = 0
    for segment, document in enumerate(documents, 1):
      end = start + len(document)
      packed[:, i, start:end] = document, [segment] * len(document), range(len(document))
      start = end
  return objectives.Causal().examples(dict(zip(('tokens', 'segment_ids', 'positions'), packed)), None)


def documents(*lengths):
  return [np.random.default_rng(n).integers(0, VOCAB, n).tolist() for n in lengths]


def value_and_gradient(parts, batch, objective_config=None):
  config, model, params = parts
  loss = objectives.create(objective_config or config.objective).loss(model)
  return jax.jit(jax.value_and_grad(loss, has_aux=True))(params, batch, None)


def test_packed_documents_have_the_loss_and_gradient_of_documents_alone(parts):
  one, two, three = documents(7, 10, 5)
  (packed, packed_metrics), packed_gradient = value_and_gradient(parts, batch_of([one, two, three]))
  (alone, alone_metrics), alone_gradient = value_and_gradient(parts, batch_of([three], [one], [two]))
  assert float(packed_metrics['loss'].weight) == float(alone_metrics['loss'].weight) == 6 + 9 + 4
  np.testing.assert_allclose(packed, alone, rtol=1e-6)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), packed_gradient, alone_gradient)


def test_loss_is_the_mean_negative_log_probability_of_the_next_token(parts):
  _, model, params = parts
  [document] = documents(9)
  (loss, metrics), _ = value_and_gradient(parts, batch_of([document]))
  stream = Stream(jnp.asarray([document]), jnp.arange(9)[None], jnp.ones((1, 9), jnp.int32))
  logits = model.logits(params, model.hidden(params, stream)[0])[0]
  probabilities = np.exp(np.asarray(logits, np.float64))
  probabilities /= probabilities.sum(-1, keepdims=True)
  expected = -np.log(probabilities[np.arange(8), document[1:]])
  np.testing.assert_allclose(loss, expected.mean(), rtol=1e-5)
  np.testing.assert_allclose(metrics['loss'].total, expected.sum(), rtol=1e-5)
  assert float(metrics['accuracy'].total) == (probabilities[:-1].argmax(-1) == document[1:]).sum()


def test_an_untrained_model_is_uniform():
  config = base.get_config()
  config.model.update({'vocab_size': VOCAB, 'num_layers': 2, 'embed_dim': 32, 'init_scale': 1e-3})
  (loss, _), _ = value_and_gradient((config, *model_lib.build(config.model)), batch_of(documents(20)))
  assert float(loss) == pytest.approx(math.log(VOCAB), rel=1e-3)


def test_a_batch_of_padding_has_no_loss_and_no_gradient(parts):
  (loss, metrics), gradient = value_and_gradient(parts, batch_of([], []))
  assert float(loss) == 0 and float(metrics['loss'].weight) == 0 == metrics['loss'].value
  assert all(float(jnp.abs(leaf).max()) == 0 for leaf in jax.tree.leaves(gradient))


def test_smoothing_and_z_loss_change_what_is_minimised_but_not_what_is_reported(parts):
  config = parts[0]
  batch = batch_of(documents(12, 9))
  (plain, plain_metrics), _ = value_and_gradient(parts, batch)
  for changes in ({'label_smoothing': 0.1}, {'z_loss': 0.01}):
    objective_config = config.objective.copy_and_resolve_references()
    objective_config.update(changes)
    (loss, metrics), _ = value_and_gradient(parts, batch, objective_config)
    assert abs(float(loss) - float(plain)) > 1e-3
    np.testing.assert_allclose(metrics['loss'].total, plain_metrics['loss'].total, rtol=1e-6)
