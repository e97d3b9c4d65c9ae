"""The device mesh: six named axes, and which of them lie across slices."""

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh

# The outermost first: what exchanges least, over the slowest links; neighbours along the last axis are nearest.
AXES = ('pipeline', 'data', 'fsdp', 'expert', 'sequence', 'tensor')


def make_mesh(mesh_config, devices: Sequence[jax.Device] | None = None) -> Mesh:
  """The mesh of the config over `devices`, by default all; sizes that use fewer take the first ones.

  With several slices the outermost axis that they divide lies across them, over the data-center network; all other
  axes stay within a slice.

  Raises:
    ValueError: as `check_mesh`; or the devices are not in as many slices of one size.
  """
  devices = jax.devices() if devices is None else list(devices)
  sizes = _sizes(mesh_config, len(devices))
  devices, shape = devices[: math.prod(sizes.values())], tuple(sizes.values())
  types = (AxisType.Auto,) * len(AXES)
  if mesh_config.slices == 1:
    return Mesh(mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True), AXES, axis_types=types)
  across, groups = axis_across_slices(sizes, mesh_config.slices), _slices(devices, mesh_config.slices)
  within = tuple(size // mesh_config.slices if name == across else size for name, size in sizes.items())
  parts = [mesh_utils.create_device_mesh(within, group, allow_split_physical_axes=True) for group in groups]
  return Mesh(np.concatenate(parts, axis=AXES.index(across)), AXES, axis_types=types)


def check_mesh(mesh_config, device_count: int) -> AbstractMesh:
  """The mesh of the config without its devices.

  Raises:
    ValueError: `device_count` devices cannot form the mesh.
  """
  sizes = _sizes(mesh_config, device_count)
  axis_across_slices(sizes, mesh_config.slices)
  return AbstractMesh(tuple(sizes.values()), tuple(sizes))


def axis_across_slices(sizes: dict[str, int], slices: int) -> str | None:
  """The axis of which each slice holds an equal part; None for one slice.

  Raises:
    ValueError: the slices divide no axis.
  """
  if slices == 1:
    return None
  for name, size in sizes.items():
    if size % slices == 0:
      return name
  raise ValueError(
    f'mesh.slices={slices} divides none of {_shown(sizes)}; one axis lies across the slices, so make the size of one, '
    f'best mesh.data or mesh.pipeline, a multiple of {slices}'
  )


def _slices(devices, number: int) -> list[list]:
  """The devices of each slice: by what they say of themselves, else, where all are of one, in equal runs."""
  by_index = {}
  for device in devices:
    by_index.setdefault(getattr(device, 'slice_index', 0), []).append(device)
  groups = list(by_index.values())
  if len(groups) == 1 and devices[0].platform == 'cpu':
    size = len(devices) // number
    groups = [devices[start : start + size] for start in range(0, len(devices), size)]
  if len(groups) != number or len(set(map(len, groups))) != 1:
    raise ValueError(
      f'mesh.slices={number}, but the {len(devices)} devices of the mesh are in slices of '
      f'{sorted(map(len, groups))}; set mesh.slices={len(groups)}, or sizes that use all devices of each slice'
    )
  return groups


def _sizes(mesh_config, device_count: int) -> dict[str, int]:
  chosen = {
    'data': mesh_config.data,
    'fsdp': mesh_config.fsdp,
    'tensor': mesh_config.tensor,
    'sequence': mesh_config.sequence,
    'pipeline': mesh_config.pipeline,
    'expert': mesh_config.expert,
  }
  sizes = {name: chosen[name] for name in AXES}
  given = _shown(sizes)
  open_axes = [name for name, size in sizes.items() if size == -1]
  if any(size < 1 and size != -1 for size in sizes.values()) or len(open_axes) > 1:
    raise ValueError(
      f'{given}: each must be at least 1, and one of them may be -1, which is all devices that the others leave'
    )
  others = math.prod(size for size in sizes.values() if size != -1)
  if open_axes:
    if device_count % others:
      raise ValueError(
        f'{given}: the sizes other than mesh.{open_axes[0]}=-1 make {others}, which does not divide the '
        f'{device_count} devices; choose sizes whose product does'
      )
    sizes[open_axes[0]] = device_count // others
  elif others > device_count:
    raise ValueError(
      f'{given} needs {others} devices; there are {device_count}; set one of them to -1 for all that the others leave'
    )
  return sizes


def _shown(sizes) -> str:
  return ', '.join(f'mesh.{name}={size}' for name, size in sizes.items() if size != 1) or 'mesh of size 1'
