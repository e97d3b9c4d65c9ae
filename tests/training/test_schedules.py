import math

import jax
import numpy as np
import pytest

from configs import base
from training import schedules

PEAK, RUN, WARMUP, DECAY = 0.5, 60, 10, 15


def curve(name, run=RUN, warmup=WARMUP, decay=DECAY, **keys):
  config = base.get_config()
  config.optimizer.update(schedule=name, final_fraction=0.2, decay_factor=0.3, **keys)
  schedule = schedules.build(config.optimizer, PEAK, run_steps=run, warmup_steps=warmup, decay_steps=decay)
  return np.array(jax.jit(jax.vmap(schedule))(np.arange(run + 1)))


def after_warmup(name, done):
  """The learning rate of the update after `done` updates, at least the warm-up's, as textbooks have it."""
  done, rest = done - WARMUP, RUN - WARMUP
  return (
    PEAK
    * {
      'constant': lambda: 1,
      'linear': lambda: 1 + (0.2 - 1) * done / rest,
      'cosine': lambda: 0.2 + 0.8 * (1 + math.cos(math.pi * done / rest)) / 2,
      'inverse_sqrt': lambda: math.sqrt(WARMUP / (WARMUP + done + 1)),
      'wsd': lambda: 1 if done < rest - DECAY else 1 - 0.8 * (done - rest + DECAY) / DECAY,
      'step': lambda: 0.3 ** (done // DECAY),
      'exponential': lambda: 0.3 ** (done / DECAY),
    }[name]()
  )


@pytest.mark.parametrize('name', schedules.NAMES)
def test_closed_forms(name):
  expected = [PEAK * (done + 1) / WARMUP for done in range(WARMUP)]
  expected += [after_warmup(name, done) for done in range(WARMUP, RUN + 1)]
  np.testing.assert_allclose(curve(name), expected, rtol=2e-5)


@pytest.mark.parametrize('name', schedules.NAMES)
@pytest.mark.parametrize('warmup', [0, 1, 7])
def test_a_run_starts_above_zero_and_never_passes_the_peak(name, warmup):
  values = curve(name, warmup=warmup)
  assert values[0] == pytest.approx(PEAK / max(warmup, 1))
  assert values.max() == pytest.approx(PEAK) == values[max(warmup - 1, 0)]
  assert (values > 0).all() and (np.diff(values[max(warmup, 1) - 1 :]) <= 1e-7).all()


@pytest.mark.parametrize('name', ['constant', 'linear', 'cosine', 'inverse_sqrt', 'step', 'exponential'])
def test_a_run_shorter_than_its_warm_up_ends_within_it(name):
  np.testing.assert_allclose(curve(name, run=4)[:4], PEAK * np.arange(1, 5) / WARMUP, rtol=1e-6)


def test_phases_that_do_not_fit_are_refused():
  with pytest.raises(ValueError, match='10 steps of warm-up and 15 of decay in a run of 20'):
    curve('wsd', run=20)


@pytest.mark.parametrize('name', ['wsd', 'step', 'exponential'])
def test_a_decay_takes_at_least_a_step(name):
  with pytest.raises(ValueError, match='optimizer.decay of at least one step'):
    curve(name, decay=0)
