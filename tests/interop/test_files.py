"""Safetensors files against the library `safetensors`, and what is wrong with some."""

import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from interop import files

RNG = np.random.default_rng(0)
ARRAYS = {
  'a': RNG.standard_normal((5, 3)).astype(np.float32),
  'b': RNG.standard_normal((7,)).astype(ml_dtypes.bfloat16),
  'c': RNG.standard_normal((2, 3, 2)).astype(np.float16),
  'd': np.full((), 3.5, np.float32),
  'e': np.zeros((0, 4), np.float32),
}


def equal(read, arrays):
  assert read.keys() == arrays.keys()
  for name, array in arrays.items():
    assert read[name].dtype == array.dtype and read[name].shape == array.shape
    assert read[name].tobytes() == array.tobytes()


def test_reads_what_the_library_wrote(tmp_path):
  safetensors.numpy.save_file(ARRAYS, tmp_path / files.ONE_FILE)
  equal({name: tensor.read() for name, tensor in files.tensors(tmp_path).items()}, ARRAYS)


@pytest.mark.parametrize('shard_bytes, shards', [(10**9, 1), (38, 3), (1, 5)])
def test_the_library_reads_what_is_written(tmp_path, shard_bytes, shards):
  specs = {name: (array.dtype, array.shape) for name, array in ARRAYS.items()}
  files.write(tmp_path, specs, reversed(ARRAYS.items()), shard_bytes)
  found = {}
  written = sorted(tmp_path.glob('*.safetensors'))
  for file in written:
    found |= safetensors.numpy.load_file(file)
  equal(found, ARRAYS)
  equal({name: tensor.read() for name, tensor in files.tensors(tmp_path).items()}, ARRAYS)
  assert len(written) == shards and (tmp_path / files.INDEX).exists() == (shards > 1)


@pytest.fixture
def sharded(tmp_path):
  files.write(tmp_path, {name: (array.dtype, array.shape) for name, array in ARRAYS.items()}, ARRAYS.items(), 38)
  return tmp_path


def truncate(file):
  file.write_bytes(file.read_bytes()[:-1])


def lie_about_size(file):
  file.write_bytes((2**40).to_bytes(8, 'little') + file.read_bytes()[8:])


def lie_about_shape(file):
  file.write_bytes(file.read_bytes().replace(b'[5, 3]', b'[5, 4]'))


@pytest.mark.parametrize('damage', [truncate, lie_about_size, lie_about_shape, lambda file: file.write_bytes(b'')])
def test_a_damaged_header_is_said_with_its_file(sharded, damage):
  file = sharded / 'model-00001-of-00003.safetensors'
  damage(file)
  with pytest.raises(files.FilesError, match=f'{file} is damaged'):
    files.tensors(sharded)


def test_a_missing_shard_is_named(sharded):
  (sharded / 'model-00002-of-00003.safetensors').unlink()
  with pytest.raises(files.FilesError, match='lacks 1 of 3 shards: model-00002-of-00003.safetensors'):
    files.tensors(sharded)


def test_an_index_that_names_a_tensor_elsewhere_is_refused(sharded):
  index = json.loads((sharded / files.INDEX).read_text())
  index['weight_map']['a'] = index['weight_map']['c']
  (sharded / files.INDEX).write_text(json.dumps(index))
  with pytest.raises(files.FilesError, match='lacks the tensor a'):
    files.tensors(sharded)


@pytest.mark.parametrize(
  'name, words',
  [('pytorch_model.bin', 'only PyTorch reads'), ('other.txt', 'has no weights: neither model.safetensors')],
)
def test_a_directory_without_safetensors_is_refused(tmp_path, name, words):
  (tmp_path / name).write_text('')
  with pytest.raises(files.FilesError, match=words):
    files.tensors(tmp_path)
