"""Experts on several devices: the run of one device, and what it costs."""

import re

import jax
import jax.numpy as jnp
import pytest
from harness import cells

from parallel.collectives import collectives

SWITCH = {'model__moe__experts_per_token': 1, 'model__moe__capacity_factor': 1.0, 'model__moe__jitter': 0.1}
KINDS = {
  'dropless': ('moe', {}),
  'capacity': ('moe', {'model__moe__capacity_factor': 1.0, 'model__use_bias': True}),
  'switch': ('moe', SWITCH | {'model__moe__shared_mlp_dim': 0}),
  'deepseek': (
    'moe',
    {
      'model__moe__router': 'sigmoid',
      'model__moe__selection_bias': True,
      'model__moe__num_experts': 8,
      'model__moe__num_groups': 4,
      'model__moe__groups_per_token': 2,
      'model__moe__experts_per_token': 3,
      'model__moe__normalize': True,
      'model__moe__routed_scale': 2.5,
    },
  ),
  'choosing': (
    'encoder',
    {
      'model__moe__num_experts': 4,
      'model__moe__router': 'expert_choice',
      'model__moe__balance_loss': 0.0,
      'model__moe__mlp_dim': 16,
    },
  ),
  'encoder_decoder': ('encoder_decoder', SWITCH | {'model__moe__num_experts': 4, 'model__moe__every': 2}),
}
ALONE = {'mesh__expert': 4}
LAYOUTS = [
  {'mesh__expert': 2},
  {'mesh__expert': 2, 'mesh__data': 2, 'mesh__fsdp': 2, 'zero_stage': 3},
  {'mesh__expert': 2, 'mesh__tensor': 2, 'mesh__sequence': 2},
  {'mesh__expert': 2, 'mesh__tensor': 2, 'mesh__sequence_parallel': True},
]


def assert_equal_to_one_device(kind, layout):
  stack, changes = KINDS[kind]
  got = cells.run(cells.build(stack, **changes, **layout), steps=1)
  found = cells.differences(got, cells.baseline(stack, **changes, steps=1))
  assert not {path: distance for path, distance in found.items() if not distance < 1e-5}


@pytest.mark.parametrize('kind', ['dropless', 'capacity'])
def test_experts_over_devices_train_as_on_one(kind):
  assert_equal_to_one_device(kind, ALONE)


@pytest.mark.slow
@pytest.mark.parametrize('layout', [ALONE, *LAYOUTS], ids=str)
@pytest.mark.parametrize('kind', KINDS)
def test_every_kind_on_every_layout(kind, layout):
  assert_equal_to_one_device(kind, layout)
