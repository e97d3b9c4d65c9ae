"""The device mesh: six named axes, of which `data` and `fsdp` can be larger than 1 so far."""

import math
from collections.abc import Sequence

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh


def make_mesh(mesh_config, devices: Sequence[jax.Device] | None = None) -> Mesh:
  """The mesh of the config over `devices`, by default all; sizes that use fewer take the first ones.

  Raises:
    ValueError: as `check_mesh`.
  """
  devices = jax.devices() if devices is None else list(devices)
  sizes = _sizes(mesh_config, len(devices))
  return jax.make_mesh(
    tuple(sizes.values()),
    tuple(sizes),
    axis_types=(AxisType.Auto,) * len(sizes),
    devices=devices[: math.prod(sizes.values())],
  )


def check_mesh(mesh_config, device_count: int) -> AbstractMesh:
  """The mesh of the config without its devices.

  Raises:
    ValueError: `device_count` devices cannot form the mesh, or it has an axis that does not exist yet.
  """
  sizes = _sizes(mesh_config, device_count)
  return AbstractMesh(tuple(sizes.values()), tuple(sizes))


def _sizes(mesh_config, device_count: int) -> dict[str, int]:
  sizes = {
    'data': mesh_config.data,
    'fsdp': mesh_config.fsdp,
    'tensor': mesh_config.tensor,
    'sequence': mesh_config.sequence,
    'pipeline': mesh_config.pipeline,
    'expert': mesh_config.expert,
  }
  for name in ('tensor', 'sequence', 'pipeline', 'expert'):
    if sizes[name] != 1:
      raise ValueError(
        f'mesh.{name}={sizes[name]} does not exist yet; set mesh.{name}=1 and use mesh.data or mesh.fsdp'
      )
  if sizes['fsdp'] < 1 or (sizes['data'] < 1 and sizes['data'] != -1):
    raise ValueError(
      f'mesh.data={sizes["data"]}, mesh.fsdp={sizes["fsdp"]}: each must be at least 1, or mesh.data=-1 '
      'for all devices that mesh.fsdp leaves'
    )
  if sizes['data'] == -1:
    if device_count % sizes['fsdp']:
      raise ValueError(
        f'mesh.fsdp={sizes["fsdp"]} does not divide the {device_count} devices; set mesh.fsdp to a divisor'
      )
    sizes['data'] = device_count // sizes['fsdp']
  if sizes['data'] * sizes['fsdp'] > device_count:
    raise ValueError(
      f'mesh.data={sizes["data"]} times mesh.fsdp={sizes["fsdp"]} needs {sizes["data"] * sizes["fsdp"]} '
      f'devices; there are {device_count}; set mesh.data=-1 for all that mesh.fsdp leaves'
    )
  return sizes
