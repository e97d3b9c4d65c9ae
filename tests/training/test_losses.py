import jax
import jax.numpy as jnp
import numpy as np

import objectives
from configs import base
from training import losses

AXES = {'kernel': ('layers', 'embed', 'mlp'), 'scale': ('layers', 'embed')}
PARAMS = {'kernel': jnp.arange(-6.0, 6.0).reshape(2, 3, 2), 'scale': jnp.full((2, 3), 5.0)}


def data_loss(params, batch, rng):
  return batch * jnp.sum(params['scale']), {'loss': 7.0}


def task(**trainable):
  return objectives.Task(None, AXES, {'kernel': True, 'scale': True, **trainable}, data_loss, {}, None)


def penalised(l1, l2, **trainable):
  config = base.get_config()
  config.optimizer.update(l1_penalty=l1, l2_penalty=l2)
  return losses.with_penalties(task(**trainable), config.optimizer).loss


def test_no_penalty_is_the_loss_itself():
  assert penalised(0.0, 0.0) is data_loss


def test_penalties_add_to_the_mean_and_the_gradient_of_matrices_only():
  (mean, metrics), gradient = jax.value_and_grad(penalised(0.3, 0.2), has_aux=True)(PARAMS, 2.0, None)
  kernel = np.asarray(PARAMS['kernel'])
  np.testing.assert_allclose(mean, 60.0 + 0.3 * np.abs(kernel).sum() + 0.1 * (kernel**2).sum(), rtol=1e-6)
  np.testing.assert_allclose(gradient['scale'], 2.0)
  nonzero = kernel != 0
  np.testing.assert_allclose(gradient['kernel'][nonzero], (0.3 * np.sign(kernel) + 0.2 * kernel)[nonzero], rtol=1e-6)
  assert metrics == {'loss': 7.0}


def test_frozen_matrices_are_not_penalised():
  assert penalised(0.3, 0.2, kernel=False)(PARAMS, 2.0, None)[0] == 60.0
