"""Where every array of a training state lies: its spec and the bytes that a device holds of it."""

import dataclasses
import math

import jax

from training.program import Program


@dataclasses.dataclass(frozen=True)
class Leaf:
  """One array of the state.

  Attributes:
    kind: 'parameters', 'optimizer', 'average' or 'counters'.
    path: its name.
    shape: of the whole array.
    dtype: of its values.
    spec: mesh axes of each dimension, in words; '' = whole on every device.
    bytes: on one device.
  """

  kind: str
  path: str
  shape: tuple[int, ...]
  dtype: str
  spec: str
  bytes: int


def leaves(program: Program) -> list[Leaf]:
  """Every array of the state of a program."""
  state, found = program.abstract_state, []
  parts = (('parameters', state.params), ('optimizer', state.opt_state), ('average', state.ema))
  for kind, tree in (*parts, ('counters', {'updates': state.updates})):
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
      name = jax.tree_util.keystr(path, simple=True, separator='/')
      found.append(Leaf(kind, name, leaf.shape, str(leaf.dtype), words(leaf.sharding.spec), device_bytes(leaf)))
  return found


def device_bytes(leaf: jax.ShapeDtypeStruct) -> int:
  """Bytes that one device holds of an array with a sharding."""
  return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def bytes_by_kind(program: Program) -> dict[str, int]:
  """Bytes of the state on one device, by kind."""
  totals = dict.fromkeys(('parameters', 'optimizer', 'average'), 0)
  for leaf in leaves(program):
    totals[leaf.kind] = totals.get(leaf.kind, 0) + leaf.bytes
  return totals


def words(spec) -> str:
  """A PartitionSpec as text: 'fsdp, -, tensor'."""
  entries = [entry if isinstance(entry, str) else '+'.join(entry or ()) for entry in spec]
  return ', '.join(entry or '-' for entry in entries) if any(entries) else ''
