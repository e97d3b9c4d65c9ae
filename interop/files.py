"""Safetensors files of a Hugging Face directory, read and written a tensor at a time."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Iterable, Mapping

import jax.numpy as jnp
import numpy as np
import safetensors

ONE_FILE = 'model.safetensors'
INDEX = 'model.safetensors.index.json'
_DTYPES = {
  'F64': np.float64,
  'F32': np.float32,
  'F16': np.float16,
  'BF16': jnp.bfloat16,
  'I64': np.int64,
  'I32': np.int32,
  'I16': np.int16,
  'I8': np.int8,
  'U8': np.uint8,
  'BOOL': np.bool_,
}
DTYPES = {name: np.dtype(dtype) for name, dtype in _DTYPES.items()}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class FilesError(ValueError):
  """Weights are missing, damaged or of a format that is not read."""


@dataclasses.dataclass(frozen=True)
class Tensor:
  """Where a tensor lies.

  Attributes:
    file: its file.
    offset: of its first byte in the file.
    dtype: as it is stored.
    shape: as it is stored.
  """

  file: pathlib.Path
  offset: int
  dtype: np.dtype
  shape: tuple[int, ...]

  def read(self) -> np.ndarray:
    """The whole tensor, in memory of its own. Raises FilesError if the file became shorter."""
    size = math.prod(self.shape) * self.dtype.itemsize
    raw = np.fromfile(self.file, np.uint8, size, offset=self.offset)
    if raw.size != size:
      raise FilesError(f'{self.file} ends within a tensor: {raw.size} of {size} bytes; fetch the file again')
    return raw.view(self.dtype).reshape(self.shape)


def tensors(directory: str | pathlib.Path) -> dict[str, Tensor]:
  """The tensors of a directory's weights, by name, from `model.safetensors` or from the shards of its index.

  Raises:
    FilesError: there are none, a shard is missing or lacks a tensor, or a header is damaged.
  """
  directory = pathlib.Path(directory)
  index = directory / INDEX
  if not index.is_file():
    if not (directory / ONE_FILE).is_file():
      raise FilesError(_no_weights(directory))
    return _header(directory / ONE_FILE)
  try:
    places = dict(json.loads(index.read_text(encoding='utf-8'))['weight_map'])
  except (ValueError, KeyError, TypeError) as error:
    raise FilesError(f'{index} is damaged ({error!r}); fetch it again') from error
  shards = {name: directory / name for name in sorted(set(places.values()))}
  if missing := [name for name, file in shards.items() if not file.is_file()]:
    raise FilesError(f'{directory} lacks {len(missing)} of {len(shards)} shards: {", ".join(missing[:3])}')
  headers = {name: _header(file) for name, file in shards.items()}
  if strays := [name for name, shard in places.items() if name not in headers[shard]]:
    raise FilesError(f'{shards[places[strays[0]]]} lacks the tensor {strays[0]}, which {INDEX} says it has')
  return {name: headers[shard][name] for name, shard in places.items()}


def write(
  directory: pathlib.Path,
  specs: Mapping[str, tuple[np.dtype, tuple[int, ...]]],
  arrays: Iterable[tuple[str, np.ndarray]],
  shard_bytes: int,
) -> None:
  """Writes tensors as they come: `model.safetensors`, or shards and their index.

  Args:
    directory: exists.
    specs: dtype and shape of every tensor, in the order in which shards are filled.
    arrays: every tensor once, in any order.
    shard_bytes: largest size of a shard that has more than one tensor.
  """
  sizes = {name: math.prod(shape) * dtype.itemsize for name, (dtype, shape) in specs.items()}
  shards = [[]]
  for name, size in sizes.items():
    if shards[-1] and sum(sizes[other] for other in shards[-1]) + size > shard_bytes:
      shards.append([])
    shards[-1].append(name)
  width = f'{len(shards):05d}'
  files = [ONE_FILE] if len(shards) == 1 else [f'model-{i + 1:05d}-of-{width}.safetensors' for i in range(len(shards))]
  places = {}
  for name, shard in zip(files, shards):
    places |= _write_header(directory / name, {tensor: specs[tensor] for tensor in shard})
  for name, array in arrays:
    tensor = places[name]
    assert array.dtype == tensor.dtype and array.shape == tensor.shape, name
    with tensor.file.open('r+b') as file:
      file.seek(tensor.offset)
      np.ascontiguousarray(array).reshape(-1).view(np.uint8).tofile(file)
  if len(shards) > 1:
    index = {
      'metadata': {'total_size': sum(sizes.values())},
      'weight_map': {name: places[name].file.name for name in sorted(specs)},
    }
    (directory / INDEX).write_text(json.dumps(index, indent=2) + '\n', encoding='utf-8')


def dtype_name(dtype: np.dtype) -> str:
  """What safetensors calls a dtype. Raises FilesError if it has none."""
  if dtype not in _NAMES:
    raise FilesError(f'{dtype} is no dtype of tensors here; there are {", ".join(map(str, _NAMES))}')
  return _NAMES[dtype]


def _header(file: pathlib.Path) -> dict[str, Tensor]:
  try:
    with safetensors.safe_open(file, framework='numpy'):  # checks that the tensors fill the file without overlap
      pass
    with file.open('rb') as opened:
      size = int.from_bytes(opened.read(8), 'little')
      header = json.loads(opened.read(size))
  except (safetensors.SafetensorError, OSError, ValueError) as error:
    raise FilesError(f'{file} is damaged ({str(error).splitlines()[0]}); fetch it again') from error
  header.pop('__metadata__', None)
  found = {}
  for name, entry in header.items():
    if entry['dtype'] not in DTYPES:
      raise FilesError(f'{file}: {name} is stored as {entry["dtype"]}; weights are read as {", ".join(DTYPES)}')
    offset = 8 + size + entry['data_offsets'][0]
    found[name] = Tensor(file, offset, DTYPES[entry['dtype']], tuple(entry['shape']))
  return found


def _write_header(file, specs) -> dict[str, Tensor]:
  """Writes the header of a file, and returns where its tensors go; those of wide dtypes first, so that all align."""
  header, places, end = {'__metadata__': {'format': 'pt'}}, {}, 0
  for name, (dtype, shape) in sorted(specs.items(), key=lambda item: -item[1][0].itemsize):
    begin, end = end, end + math.prod(shape) * dtype.itemsize
    header[name] = {'dtype': dtype_name(dtype), 'shape': list(shape), 'data_offsets': [begin, end]}
    places[name] = Tensor(file, begin, dtype, tuple(shape))
  text = json.dumps(header).encode()
  text += b' ' * (-len(text) % 8)
  with file.open('wb') as opened:
    opened.write(len(text).to_bytes(8, 'little') + text)
    opened.truncate(8 + len(text) + end)
  return {name: dataclasses.replace(place, offset=8 + len(text) + place.offset) for name, place in places.items()}


def _no_weights(directory):
  if not directory.is_dir():
    return f'{directory} is no directory'
  pickled = sorted(directory.glob('*.bin')) + sorted(directory.glob('*.pt'))
  if pickled:
    return (
      f'{directory} has its weights in {pickled[0].name}, which only PyTorch reads; write safetensors with it: '
      f"AutoModel.from_pretrained('{directory}').save_pretrained('NEW_DIRECTORY')"
    )
  return f'{directory} has no weights: neither {ONE_FILE} nor {INDEX}'
