"""Arrays of a checkpoint, by the shards in which Orbax keeps them: zarr in an OCDBT database.

A stored array is cut into cells of one shape, those at its ends perhaps smaller, and each has a CRC-32 of its own. A
cell is what one device held of an array, or one piece of an array that was written part by part. Whatever reads any of
a cell reads all of it and verifies it; no more than the cells that a process needs is ever in its memory.
"""

import concurrent.futures
import dataclasses
import itertools
import math
import pathlib
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import jax
import numpy as np

from training import params as params_lib

Box = tuple[tuple[int, int], ...]  # (start, stop) along each dimension

_PIECE_BYTES = 2**25  # of an array that is converted and written at once
_READERS = 4  # arrays that are read at the same time


@dataclasses.dataclass(frozen=True)
class Stored:
  """What a checkpoint knows of one of its arrays.

  Attributes:
    dtype: its name.
    shape: of the whole array.
    cell: shape of its cells.
    checksums: CRC-32 of the bytes of each cell, by `cell_key`.
  """

  dtype: str
  shape: tuple[int, ...]
  cell: tuple[int, ...]
  checksums: Mapping[str, int]


def cell_key(number: Iterable[int]) -> str:
  """The name of a cell, from its number along each dimension."""
  return '.'.join(map(str, number))


def checksum(array: np.ndarray) -> int:
  """CRC-32 of the array's bytes in C order."""
  return zlib.crc32(params_lib.array_bytes(array))


def box(index: Sequence[slice], shape: Sequence[int]) -> Box:
  """The slices of a shard, as `jax.sharding.Sharding.devices_indices_map` gives them, as a box."""
  return tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))


def write_parts(
  directory: pathlib.Path,
  shapes: Mapping[str, tuple[int, ...]],
  parts: Iterable[tuple[str, tuple[int, ...], np.ndarray]],
) -> dict[str, Stored]:
  """Writes float32 arrays, replacing those that are there; part i of an array is what its leading index i selects.

  A stack of layers is written layer by layer, and never whole in memory.

  Args:
    directory: of the item of a checkpoint that holds the arrays.
    shapes: of the whole arrays by name.
    parts: (name, leading index, array of the rest of the shape); those of a name in increasing order of the index.

  Returns:
    What was written.

  Raises:
    ValueError: the parts of an array are not in order, or not all there.
  """
  stored, written, stores, pending = {}, dict.fromkeys(shapes, 0), {}, []
  try:
    for name, index, array in parts:
      inner = shapes[name][len(index) :]
      if written[name] != _before(index, shapes[name]) or array.shape != inner:
        raise ValueError(f'part {index} of {name} came after {written[name]} elements, with shape {array.shape}')
      rows = max(1, min(inner[0], _PIECE_BYTES // max(1, 4 * math.prod(inner[1:]))))
      if name not in stores:
        stored[name] = Stored('float32', shapes[name], (1,) * len(index) + (rows,) + inner[1:], {})
        stores[name] = _open(directory, name, new=stored[name])
      for start in range(0, inner[0], rows):
        piece = np.array(array[start : start + rows], np.float32, order='C')
        pending.append(stores[name][(*index, slice(start, start + len(piece)))].write(piece))
        key = cell_key((*index, start // rows) + (0,) * (len(inner) - 1))
        stored[name].checksums[key] = checksum(piece)
        written[name] += piece.size
        _drain(pending, 2)
  finally:
    _drain(pending, 0)
  if lacking := [name for name, shape in shapes.items() if written[name] != math.prod(shape)]:
    raise ValueError(f'parts of {", ".join(lacking)} did not come')
  return stored


class StoredArrays:
  """Arrays of a checkpoint, to be read by boxes or part by part; whatever is read is verified.

  Args:
    directory: of the item of a checkpoint that holds the arrays.
    stored: by name.
    damaged: `damaged(why) -> exception` to raise.
  """

  def __init__(self, directory: pathlib.Path, stored: Mapping[str, Stored], damaged):
    self._directory, self.stored, self._damaged = directory, stored, damaged
    self._stores, self._last = {}, {}

  def read(self, name: str, index: tuple[int, ...], dtype=np.float32) -> np.ndarray:
    """What the leading `index` selects of an array, converted cell by cell; fastest in increasing order of the index.

    Raises:
      Exception: what `damaged` returns, if the bytes cannot be read or are not those that were written.
    """
    shape = self.stored[name].shape
    wanted = tuple((i, i + 1) for i in index) + tuple((0, size) for size in shape[len(index) :])
    [part] = self.read_boxes(name, [wanted], dtype)
    if all(stop == size for (_, stop), size in zip(wanted, shape)):
      self.forget(name)
    return part.reshape(shape[len(index) :])

  def read_boxes(self, name: str, boxes: Sequence[Box], dtype=None) -> list[np.ndarray]:
    """Parts of an array; each cell that any of them touches is read once.

    Args:
      name: of the array.
      boxes: of the parts.
      dtype: to convert to; None: as stored.

    Raises:
      Exception: as `read`.
    """
    spec = self.stored[name]
    parts = [None] * len(boxes)
    for number in sorted({number for one in boxes for number in _cells(one, spec.cell)}):
      cell = tuple((i * size, min((i + 1) * size, end)) for i, size, end in zip(number, spec.cell, spec.shape))
      values = self._read_cell(name, number, cell)
      for i, one in enumerate(boxes):
        if one == cell and dtype is None:
          parts[i] = values
        elif (common := _common(one, cell)) is not None:
          if parts[i] is None:
            parts[i] = _empty(one, dtype or spec.dtype)
          parts[i][_slices(common, one)] = values[_slices(common, cell)]
    return [_empty(one, dtype or spec.dtype) if part is None else part for part, one in zip(parts, boxes)]

  def _read_cell(self, name, number, cell) -> np.ndarray:
    if self._last.get(name, (None,))[0] == number:
      return self._last[name][1]
    spec = self.stored[name]
    try:
      store = self._stores.get(name) or self._stores.setdefault(name, _open(self._directory, name))
      values = np.asarray(store[tuple(slice(*part) for part in cell)].read().result())
    except Exception as error:  # tensorstore has no class of its own for its errors
      raise self._damaged(f'its arrays cannot be read ({name}: {str(error).splitlines()[0][:300]})') from error
    key = cell_key(number)
    if values.dtype.name != spec.dtype or checksum(values) != spec.checksums.get(key):
      where = f' in shard {key}' if len(spec.checksums) > 1 else ''
      raise self._damaged(f'{name} does not have the checksum it was saved with{where}')
    # Parts that follow each other may lie in one cell, the last of them at its end.
    self._last[name] = (number, values)
    return values

  def forget(self, name: str) -> None:
    """Lets go of what is kept of an array for the parts that follow."""
    self._last.pop(name, None)
    self._stores.pop(name, None)


def restore(arrays: StoredArrays, shardings: Mapping[str, jax.sharding.Sharding | None]) -> dict[str, jax.Array]:
  """Reads arrays straight into shardings, each process what its devices hold.

  Args:
    arrays: the stored arrays.
    shardings: wanted, by name; None: on the default device.

  Raises:
    Exception: as `StoredArrays.read`.
  """

  def read(item):
    name, sharding = item
    shape = arrays.stored[name].shape
    # Never aliased: a step could not reuse memory that numpy owns.
    if sharding is None:
      result = jax.device_put(arrays.read(name, (), None), may_alias=False)
    else:
      places = {d: box(index, shape) for d, index in sharding.addressable_devices_indices_map(shape).items()}
      boxes = sorted(set(places.values()))
      parts = dict(zip(boxes, arrays.read_boxes(name, boxes), strict=True))
      on = {d: jax.sharding.SingleDeviceSharding(d, memory_kind=sharding.memory_kind) for d in places}
      shards = [jax.device_put(parts[place], on[d], may_alias=False) for d, place in places.items()]
      result = jax.make_array_from_single_device_arrays(shape, sharding, shards)
    arrays.forget(name)
    return name, result

  with concurrent.futures.ThreadPoolExecutor(_READERS, thread_name_prefix='restore') as pool:
    return dict(pool.map(read, shardings.items()))


def _open(directory, name, new: Stored | None = None):
  import tensorstore  # half a second, of those who need it

  spec = {
    'driver': 'zarr',
    'kvstore': {'driver': 'ocdbt', 'base': {'driver': 'file', 'path': f'{directory}/'}, 'path': f'{name}/'},
  }
  if new is None:
    return tensorstore.open(spec, read=True).result()
  layout = {'shape': list(new.shape), 'chunks': list(new.cell), 'dtype': '<f4', 'compressor': None, 'order': 'C'}
  spec |= {'metadata': layout, 'store_data_equal_to_fill_value': True}
  return tensorstore.open(spec, create=True, delete_existing=True).result()


def _cells(wanted: Box, cell) -> Iterator[tuple[int, ...]]:
  """The numbers of the cells that a box touches."""
  if any(start == stop for start, stop in wanted):
    return iter(())
  return itertools.product(*(range(start // size, -(-stop // size)) for (start, stop), size in zip(wanted, cell)))


def _common(one: Box, other: Box) -> Box | None:
  """What two boxes share; None if nothing."""
  common = tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(one, other))
  return common if all(start < stop for start, stop in common) else None


def _empty(one: Box, dtype) -> np.ndarray:
  return np.empty([stop - start for start, stop in one], dtype)


def _slices(inner: Box, outer: Box) -> tuple[slice, ...]:
  """Where a box lies within another."""
  return tuple(slice(start - origin, stop - origin) for (start, stop), (origin, _) in zip(inner, outer))


def _before(index, shape) -> int:
  """Elements of an array before its part."""
  return sum(i * math.prod(shape[axis + 1 :]) for axis, i in enumerate(index))


def _drain(pending: list, limit: int) -> None:
  """Waits until at most `limit` writes are on their way."""
  while len(pending) > limit:
    pending.pop(0).result()
