import jax
import jax.numpy as jnp
import numpy as np

from configs import base
from training import losses

AXES = {'kernel': ('layers', 'embed', 'mlp'), 'scale': ('layers', 'embed')}
PARAMS = {'kernel': jnp.arange(-6.0, 6.0).reshape(2, 3, 2), 'scale': jnp.full((2, 3), 5.0)}


def data_loss(params, batch, rng):
  return batch * jnp.sum(params['scale']), {'tokens': 7.0}


def penalised(l1, l2):
  config = base.get_config()
  config.optimizer.update(l1_penalty=l1, l2_penalty=l2)
  return losses.with_penalties(data_loss, config.optimizer, AXES)


def test_no_penalty_is_the_loss_itself():
  assert penalised(0.0, 0.0) is data_loss


def test_penalties_add_to_the_mean_and_the_gradient_of_matrices_only():
  (mean, sums), gradient = jax.value_and_grad(penalised(0.3, 0.2), has_aux=True)(PARAMS, 2.0, None)
  kernel = np.asarray(PARAMS['kernel'])
  np.testing.assert_allclose(mean, 60.0 + 0.3 * np.abs(kernel).sum() + 0.1 * (kernel**2).sum(), rtol=1e-6)
  np.testing.assert_allclose(gradient['scale'], 2.0)
  nonzero = kernel != 0
  np.testing.assert_allclose(gradient['kernel'][nonzero], (0.3 * np.sign(kernel) + 0.2 * kernel)[nonzero], rtol=1e-6)
  assert sums == {'tokens': 7.0}
