"""Every shape of configs/pods.py, compiled by the real compiler for the hardware it is for, without it."""

import re

import pytest

import planning
from configs import pods
from training import configs

pytestmark = pytest.mark.proof('configs', 'planning', built_with=('libtpu', 'jax-cuda13-plugin'))
HARDWARE = dict(re.findall(r'^\| `(\w+)` \|[^|]*\| (\S+) \|', pods.__doc__, re.MULTILINE))


def plan_of(variant):
  pytest.importorskip('libtpu' if HARDWARE[variant].startswith('v') else 'jax_plugins.xla_cuda13')
  planning.stay_on_cpu()
  config = planning.resolve(configs.load(f'configs/pods.py:{variant}'))
  return planning.make_plan(config, planning.parse(HARDWARE[variant]))


def test_the_docstring_names_the_hardware_of_every_variant():
  assert set(HARDWARE) == set(pods._CONFIGS)


_SLOW = 'llama_1b_h200'  # the others take minutes each


@pytest.mark.parametrize(
  'variant',
  [pytest.param(name, marks=pytest.mark.slow if name == _SLOW else pytest.mark.exhaustive) for name in HARDWARE],
)
def test_a_pod_config_compiles_fits_and_is_what_was_estimated(variant):
  plan = plan_of(variant)
  assert plan.fits, planning.misfit_words(plan)
  assert plan.compiled.attention == ('tpu' if HARDWARE[variant].startswith('v') else 'hopper',)
  state = ('parameters', 'optimizer', 'average', 'batch')
  assert sum(plan.estimate.bytes[kind] for kind in state) == pytest.approx(plan.compiled.argument_bytes, rel=0.02)
  if HARDWARE[variant].startswith('h'):  # how TPU programs hold gathered weights is not modelled
    assert plan.estimate.total_bytes == pytest.approx(plan.compiled.planned_bytes, rel=0.15)
