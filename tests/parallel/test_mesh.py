import re

import jax
import pytest

from configs import base
from parallel import mesh


def mesh_config(**sizes):
  config = base.get_config()
  config.mesh.update(sizes)
  return config.mesh


@pytest.mark.parametrize(
  'sizes, data, fsdp',
  [({}, 8, 1), ({'fsdp': 4}, 2, 4), ({'fsdp': 8}, 1, 8), ({'data': 1}, 1, 1), ({'data': 3, 'fsdp': 2}, 3, 2)],
)
def test_a_mesh_takes_the_first_devices_in_order(sizes, data, fsdp):
  made = mesh.make_mesh(mesh_config(**sizes))
  assert made.axis_names == ('data', 'fsdp', 'tensor', 'sequence', 'pipeline', 'expert')
  assert made.devices.shape == (data, fsdp, 1, 1, 1, 1)
  assert sorted(device.id for device in made.devices.flat) == list(range(data * fsdp))
  assert set(made.axis_types) == {jax.sharding.AxisType.Auto}


@pytest.mark.parametrize(
  'sizes, said',
  [
    ({'tensor': 2}, 'mesh.tensor=2 does not exist yet; set mesh.tensor=1'),
    ({'expert': 0}, 'mesh.expert=0 must be at least 1'),
    ({'fsdp': 0}, 'mesh.fsdp=0 must be at least 1'),
    ({'data': -2}, 'mesh.data=-2'),
    ({'data': 0}, 'mesh.data=0, mesh.fsdp=1: each must be at least 1'),
    ({'fsdp': 3}, 'mesh.fsdp=3 does not divide the 8 devices'),
    ({'fsdp': 16}, 'mesh.fsdp=16 does not divide the 8 devices'),
    ({'data': 4, 'fsdp': 4}, 'needs 16 devices; there are 8; set mesh.data=-1'),
  ],
)
def test_a_mesh_that_cannot_be_is_refused_in_words(sizes, said):
  with pytest.raises(ValueError, match=re.escape(said)):
    mesh.check_mesh(mesh_config(**sizes), 8)
