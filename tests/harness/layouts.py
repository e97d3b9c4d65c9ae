"""Layouts over the simulated devices."""

import parallel
from configs import base


def make_layout(zero_stage: int = 0, **mesh_keys) -> parallel.Layout:
  """The layout of `mesh.KEY=VALUE`; axes that are not given have size 1."""
  config = base.get_config().mesh
  config.update({'data': 1, **mesh_keys})
  return parallel.make_layout(config, parallel.make_mesh(config), zero_stage)
