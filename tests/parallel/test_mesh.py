import re
import types

import jax
import pytest

from configs import base
from parallel import mesh

AXES = ('pipeline', 'data', 'fsdp', 'expert', 'sequence', 'tensor')


def mesh_config(**sizes):
  config = base.get_config()
  config.mesh.update(sizes)
  return config.mesh


@pytest.mark.parametrize(
  'sizes, shape',
  [
    ({}, (1, 8, 1, 1, 1, 1)),
    ({'fsdp': 4}, (1, 2, 4, 1, 1, 1)),
    ({'data': 1, 'tensor': -1, 'pipeline': 2}, (2, 1, 1, 1, 1, 4)),
    ({'data': 1}, (1, 1, 1, 1, 1, 1)),
    ({'data': 1, 'expert': 3, 'sequence': 2}, (1, 1, 1, 3, 2, 1)),
  ],
)
def test_a_mesh_takes_the_first_devices_in_order(sizes, shape):
  made = mesh.make_mesh(mesh_config(**sizes))
  assert made.axis_names == AXES
  assert made.devices.shape == shape
  assert sorted(device.id for device in made.devices.flat) == list(range(made.size))
  assert set(made.axis_types) == {jax.sharding.AxisType.Auto}


@pytest.mark.parametrize(
  'sizes, said',
  [
    ({'expert': -2}, 'mesh.expert=-2 must be at least -1'),
    ({'fsdp': 0}, 'mesh.data=-1, mesh.fsdp=0: each must be at least 1'),
    ({'data': -2}, 'mesh.data=-2'),
    ({'fsdp': -1}, 'mesh.data=-1, mesh.fsdp=-1: each must be at least 1, and one of them may be -1'),
    ({'fsdp': 3}, 'the sizes other than mesh.data=-1 make 3, which does not divide the 8 devices'),
    ({'fsdp': 16}, 'make 16, which does not divide the 8 devices'),
    ({'data': 4, 'fsdp': 4}, 'mesh.data=4, mesh.fsdp=4 needs 16 devices; there are 8'),
    ({'fsdp': 8, 'slices': 3}, 'mesh.slices=3 divides none of mesh.fsdp=8'),
  ],
)
def test_a_mesh_that_cannot_be_is_refused_in_words(sizes, said):
  with pytest.raises(ValueError, match=re.escape(said)):
    mesh.check_mesh(mesh_config(**sizes), 8)


@pytest.mark.parametrize('sizes, across', [({'fsdp': 2}, 1), ({'data': 1, 'fsdp': -1}, 2), ({'pipeline': 2}, 0)])
def test_one_axis_lies_across_slices_and_all_others_within(sizes, across):
  made = mesh.make_mesh(mesh_config(slices=2, **sizes)).devices
  halves = made.reshape(*made.shape[:across], 2, -1, *made.shape[across + 1 :]).swapaxes(0, across)
  assert [{device.id // 4 for device in half.flat} for half in halves] == [{0}, {1}]


def test_slices_are_what_devices_say_of_themselves():
  devices = [types.SimpleNamespace(id=n, slice_index=n % 2, platform='tpu') for n in range(6)]
  assert [[device.id for device in group] for group in mesh._slices(devices, 2)] == [[0, 2, 4], [1, 3, 5]]
  with pytest.raises(ValueError, match=re.escape('devices of the mesh are in slices of [2, 3]; set mesh.slices=2')):
    mesh._slices(devices[:5], 2)
