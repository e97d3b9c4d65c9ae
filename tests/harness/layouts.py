"""Layouts over the simulated devices."""

from configs import base
from parallel import Layout, make_mesh


def make_layout(zero_stage: int = 0, **mesh_keys) -> Layout:
  """The layout of `mesh.KEY=VALUE`; axes that are not given have size 1."""
  config = base.get_config().mesh
  config.update({'data': 1, **mesh_keys})
  return Layout(make_mesh(config), zero_stage, config.sequence_parallel)
