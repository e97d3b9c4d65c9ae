"""Where every array of a training state lies: its spec and the bytes that a device holds of it."""

import dataclasses
import math

import jax

import parallel
from parallel import rules
from training.state import TrainState

KINDS = ('parameters', 'optimizer', 'average')


@dataclasses.dataclass(frozen=True)
class Leaf:
  """One array of the state.

  Attributes:
    kind: one of `KINDS`, or 'counters'.
    path: its name.
    shape: of the whole array.
    dtype: of its values.
    split: mesh axes that split each dimension, in words: 'fsdp, -, tensor'; 'whole' where none does.
    bytes: on one device.
  """

  kind: str
  path: str
  shape: tuple[int, ...]
  dtype: str
  split: str
  bytes: int


def state_leaves(state: TrainState, logical_axes, layout: parallel.Layout) -> list[Leaf]:
  """Every array of a state in a layout, whose mesh may be abstract.

  Args:
    state: TrainState of ShapeDtypeStructs.
    logical_axes: of the parameters, as `objectives.Task` has them.
    layout: of the run.

  Raises:
    ValueError: an array cannot be split as the layout says.
  """
  shardings = parallel.state_shardings(state, state.params, logical_axes, layout)
  found = []
  for kind, field in (*zip(KINDS, ('params', 'opt_state', 'ema')), ('counters', 'updates')):
    leaves = jax.tree_util.tree_leaves_with_path(getattr(state, field))
    for (path, leaf), sharding in zip(leaves, jax.tree.leaves(getattr(shardings, field)), strict=True):
      name = jax.tree_util.keystr(path, simple=True, separator='/') or field
      size = device_bytes(leaf, sharding)
      found.append(Leaf(kind, name, leaf.shape, str(leaf.dtype), _words(sharding.spec, layout.mesh.shape), size))
  return found


def device_bytes(leaf, sharding) -> int:
  """Bytes that one device holds of an array with a sharding."""
  return math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def bytes_by_kind(leaves: list[Leaf]) -> dict[str, int]:
  """Bytes on one device by kind, counters left out."""
  return {kind: sum(leaf.bytes for leaf in leaves if leaf.kind == kind) for kind in KINDS}


def _words(spec, mesh_shape) -> str:
  entries = ['+'.join(name for name in rules.mesh_axes(entry) if mesh_shape[name] > 1) for entry in spec]
  return ', '.join(entry or '-' for entry in entries) if any(entries) else 'whole'
