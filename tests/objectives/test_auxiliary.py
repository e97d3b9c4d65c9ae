"""What layers add to a loss: means over layers, in the loss that is minimised and not in the one that is reported."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import objectives
from configs import base
from model import Metric
from objectives.auxiliary import auxiliary_loss
from pallas_kernels import CrossEntropy
from training.step import accumulate


class Model:
  """Two layers that add the mean of the tokens, and one that adds 5; the cross-entropy of a token is a parameter."""

  def hidden(self, params, stream, rng):
    of_two = 2 * params['scale'] * jnp.mean(stream.tokens)
    return None, {'aux/a_loss': Metric(of_two, 2.0), 'aux/b_loss': Metric(5.0, 1.0), 'moe/load': Metric(100.0, 1.0)}

  def cross_entropy(self, params, hidden, labels, label_smoothing, z_loss):
    nll = jnp.where(labels >= 0, params['nats'], 0.0)
    return CrossEntropy(jnp.sum(nll), nll, labels >= 0)


PARAMS = {'scale': 0.5, 'nats': 3.0}


def batch_of(tokens, labels):
  ones = np.ones_like(tokens)
  return {'tokens': tokens, 'labels': labels, 'segment_ids': ones, 'positions': ones}


def value_and_gradient(params, batch, rng):
  return jax.value_and_grad(objectives.create(base.get_config().objective).loss(Model()), has_aux=True)(
    params, batch, rng
  )


def test_means_over_layers_are_added_to_what_is_minimised_alone():
  batch = batch_of(np.array([[2, 4], [8, 2]]), np.array([[1, -1], [1, 1]]))
  (mean, metrics), gradient = value_and_gradient(PARAMS, batch, None)
  assert float(mean) == pytest.approx(3 + 0.5 * 4 + 5)
  assert metrics['loss'].value == pytest.approx(3) and metrics['aux/a_loss'].value == pytest.approx(2)
  assert float(gradient['scale']) == pytest.approx(4) and float(gradient['nats']) == pytest.approx(1)
  assert auxiliary_loss({'loss': Metric(1.0, 1.0)}) == 0


def test_microbatches_weigh_by_their_counted_tokens():
  batch = batch_of(np.array([[2, 4], [8, 2]]), np.array([[1, -1], [1, 1]]))
  (mean, metrics), gradient = accumulate(value_and_gradient, 2)(PARAMS, batch, jax.random.key(0))
  assert float(mean) == pytest.approx(3 + 0.5 * (1 * 3 + 2 * 5) / 3 + 5)
  assert float(gradient['scale']) == pytest.approx((1 * 3 + 2 * 5) / 3)
  assert metrics['aux/a_loss'].value == pytest.approx(0.5 * (3 + 5) / 2)
