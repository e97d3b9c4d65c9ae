"""Topologies as text."""

import pytest

from planning import topology


def test_a_topology_knows_its_chips_and_devices():
  where = topology.parse('v5e:16x16')
  assert (where.num_chips, where.num_devices, where.accelerator.name) == (256, 256, 'v5e')
  assert topology.parse('v5p:8x8x8').num_devices == 512
  assert topology.parse('h200:32').num_devices == 32
  assert topology.parse('tpu7x:4x4x4').num_devices == 128


@pytest.mark.parametrize(
  'text, words',
  [
    ('v5e', "topology 'v5e' is not NAME:SHAPE .* type for example v5e:16x16, v5p:8x8x8 or h200:32"),
    ('v5e:16x', 'is not NAME:SHAPE'),
    ('v5e:0x4', 'is not NAME:SHAPE'),
    ('v5e:axb', 'is not NAME:SHAPE'),
    ('v9:2x2', "no accelerator 'v9'; there are"),
    ('v5e:8x8x8', 'has 3 dimensions, but v5e has a torus of 2; type for example v5e:16x16'),
    ('v5p:8x8', 'has 2 dimensions, but v5p has a torus of 3; type for example v5p:8x8x8'),
    ('v5e:32x32', 'has 1,024 chips, but a pod of v5e has 256'),
    ('h200:4x8', 'GPUs are only counted; type h200:32'),
    ('h200:12', 'does not fill its hosts, which have 8 GPUs; type h200:16'),
  ],
)
def test_a_mistake_is_told_with_what_to_type(text, words):
  with pytest.raises(ValueError, match=words):
    topology.parse(text)


def exchange(text, axes, **sizes):
  return topology.exchange('all-reduce', axes, 1.0, sizes, topology.parse(text))


def test_neighbours_in_the_mesh_share_an_island():
  found = exchange('h200:32', ('fsdp',), data=4, fsdp=8)
  assert (found.size, found.islands) == (8, 1)
  found = exchange('h200:32', ('data',), data=4, fsdp=8)
  assert (found.size, found.islands) == (4, 4)
  found = exchange('h200:32', ('fsdp',), fsdp=16, tensor=2)
  assert (found.size, found.islands) == (16, 4)
  found = exchange('h200:32', ('fsdp', 'tensor'), fsdp=16, tensor=2)
  assert (found.size, found.islands, found.label) == (32, 4, 'fsdp+tensor')
  assert exchange('h200:8', ('fsdp',), fsdp=8).islands == 1


def test_a_group_has_the_dimensions_of_the_torus_that_it_fills():
  assert exchange('v5e:16x16', ('tensor',), fsdp=64, tensor=4).dimensions == 1
  assert exchange('v5e:16x16', ('fsdp',), fsdp=64, tensor=4).dimensions == 1
  assert exchange('v5e:16x16', ('fsdp',), fsdp=256).dimensions == 2
  assert exchange('v5p:8x8x8', ('fsdp',), fsdp=64, tensor=8).dimensions == 2
