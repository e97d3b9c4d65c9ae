"""Arrays of a checkpoint a part at a time, in the layout in which Orbax keeps them: zarr in an OCDBT database.

Part i of an array is what its leading index i selects; a stack of layers is written layer by layer, and never whole in
memory.
"""

import math
import pathlib
import zlib
from collections.abc import Iterable, Mapping

import numpy as np

from training import params as params_lib

_PIECE_BYTES = 2**25  # of an array that is converted and written at once


def write_parts(
  directory: pathlib.Path,
  shapes: Mapping[str, tuple[int, ...]],
  parts: Iterable[tuple[str, tuple[int, ...], np.ndarray]],
) -> dict[str, int]:
  """Writes float32 arrays, replacing those that are there.

  Args:
    directory: of the item of a checkpoint that holds the arrays.
    shapes: of the whole arrays by name.
    parts: (name, leading index, array of the rest of the shape); those of a name in increasing order of the index.

  Returns:
    The CRC-32 of each array's bytes.

  Raises:
    ValueError: the parts of an array are not in order, or not all there.
  """
  checksums, written, stores, pending = dict.fromkeys(shapes, 0), dict.fromkeys(shapes, 0), {}, []
  try:
    for name, index, array in parts:
      inner = shapes[name][len(index) :]
      if written[name] != _before(index, shapes[name]) or array.shape != inner:
        raise ValueError(f'part {index} of {name} came after {written[name]} elements, with shape {array.shape}')
      rows = max(1, _PIECE_BYTES // max(1, 4 * math.prod(inner[1:])))
      if name not in stores:
        stores[name] = _open(directory, name, create=(shapes[name], (1,) * len(index) + (rows,) + inner[1:]))
      for start in range(0, inner[0], rows):
        piece = np.array(array[start : start + rows], np.float32, order='C')
        pending.append(stores[name][(*index, slice(start, start + len(piece)))].write(piece))
        checksums[name] = zlib.crc32(params_lib.array_bytes(piece), checksums[name])
        written[name] += piece.size
        _drain(pending, 2)
  finally:
    _drain(pending, 0)
  if lacking := [name for name, shape in shapes.items() if written[name] != math.prod(shape)]:
    raise ValueError(f'parts of {", ".join(lacking)} did not come')
  return checksums


class StoredArrays:
  """Arrays that `write_parts` or Orbax wrote, to be read part by part; each is verified when its last part is read.

  Args:
    directory: of the item of a checkpoint that holds the arrays.
    checksums: by name.
    damaged: `damaged(why) -> exception` to raise.
  """

  def __init__(self, directory: pathlib.Path, checksums: Mapping[str, int], damaged):
    self._directory, self._expected, self._damaged = directory, checksums, damaged
    self._stores, self._whole = {}, {}
    self._checksums, self._read = dict.fromkeys(checksums, 0), dict.fromkeys(checksums, 0)

  def read(self, name: str, index: tuple[int, ...], dtype=np.float32) -> np.ndarray:
    """One part of an array, converted piece by piece; parts of a name are read in increasing order of the index, once.

    Raises:
      ValueError: they are not.
      Exception: what `damaged` returns, if the bytes cannot be read or are not those that were written.
    """
    try:
      store = self._stores.get(name) or self._stores.setdefault(name, _open(self._directory, name))
      part = np.empty(store.shape[len(index) :], dtype)
      for start, piece in self._pieces(name, store, index):
        part[start : start + len(piece)] = piece
        self._checksums[name] = zlib.crc32(params_lib.array_bytes(piece), self._checksums[name])
    except (OSError, ValueError, RuntimeError, KeyError) as error:
      raise self._damaged(f'its arrays cannot be read ({str(error).splitlines()[0][:300]})') from error
    if self._read[name] != _before(index, store.shape):
      raise ValueError(f'part {index} of {name} is read out of order')
    self._read[name] += part.size
    if self._read[name] == math.prod(store.shape):
      self._whole.pop(name, None)
      if self._checksums[name] != self._expected[name]:
        raise self._damaged(f'{name} does not have the checksum it was saved with')
    return part

  def _pieces(self, name, store, index):
    """(first row, rows) of a part."""
    chunk, rows = store.chunk_layout.read_chunk.shape, store.shape[len(index)]
    if any(size > 1 for size in chunk[: len(index)]):  # a part would read a whole chunk each time
      if name not in self._whole:
        self._whole[name] = store.read().result()
      yield 0, self._whole[name][index]
      return
    step = chunk[len(index)]
    for start in range(0, rows, step):
      yield start, store[(*index, slice(start, min(start + step, rows)))].read().result()


def _open(directory, name, create=None):
  import tensorstore  # half a second, of those who need it

  spec = {
    'driver': 'zarr',
    'kvstore': {'driver': 'ocdbt', 'base': {'driver': 'file', 'path': f'{directory}/'}, 'path': f'{name}/'},
  }
  if create is None:
    return tensorstore.open(spec, read=True).result()
  shape, chunk = create
  chunk = [min(part, size) for part, size in zip(chunk, shape)]
  spec |= {
    'metadata': {'shape': list(shape), 'chunks': chunk, 'dtype': '<f4', 'compressor': None, 'order': 'C'},
    'store_data_equal_to_fill_value': True,
  }
  return tensorstore.open(spec, create=True, delete_existing=True).result()


def _before(index, shape) -> int:
  """Elements of an array before its part."""
  return sum(i * math.prod(shape[axis + 1 :]) for axis, i in enumerate(index))


def _drain(pending: list, limit: int) -> None:
  """Waits until at most `limit` writes are on their way."""
  while len(pending) > limit:
    pending.pop(0).result()
