"""Checkpoints written and read part by part, against those of Orbax."""

import itertools
import math
import types

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from training import arrays, checkpoints

RNG = np.random.default_rng(0)
LEAVES = {
  'params/table': RNG.standard_normal((7, 3), np.float32),
  'params/layers/kernel': RNG.standard_normal((4, 2, 5), np.float32),
}
SHAPES = {name: leaf.shape for name, leaf in LEAVES.items()}


def parts():
  yield 'params/table', (), LEAVES['params/table']
  for i in range(4):
    yield 'params/layers/kernel', (i,), LEAVES['params/layers/kernel'][i].T.copy().T  # not contiguous


@pytest.fixture(params=['parts', 'orbax'])
def saved(request, tmp_path, monkeypatch):
  monkeypatch.setattr(arrays, '_PIECE_BYTES', 24)  # two rows of the table
  with checkpoints.Checkpoints(tmp_path) as found:
    if request.param == 'parts':
      found.save_parts(0, SHAPES, parts(), {'a': 1})
    else:
      found.save(0, LEAVES, {'a': 1})
    found.wait()
    yield found


def test_orbax_restores_every_bit(saved):
  restored, metadata = saved.restore_fields(0, ('params',))
  assert metadata == {'a': 1} and saved.steps() == [0]
  assert restored['params']['table'].tobytes() == LEAVES['params/table'].tobytes()
  assert restored['params']['layers']['kernel'].tobytes() == LEAVES['params/layers/kernel'].tobytes()


def test_parts_are_read_in_any_order_and_converted(saved):
  stored = saved.open_arrays(0)
  assert {name: spec.shape for name, spec in stored.stored.items()} == SHAPES
  np.testing.assert_array_equal(stored.read('params/table', (), np.float16), LEAVES['params/table'].astype(np.float16))
  for i in (2, 0, 1, 3):
    np.testing.assert_array_equal(stored.read('params/layers/kernel', (i,)), LEAVES['params/layers/kernel'][i])


@hypothesis.settings(max_examples=50)
@hypothesis.given(st.data())
def test_boxes_of_any_cells(data):
  """Against numpy, through cells that were written in parts; each cell that is needed is read once, and no other."""
  shape = data.draw(st.lists(st.integers(1, 5), max_size=3).map(tuple))
  cell = tuple(data.draw(st.integers(1, size)) for size in shape)
  values = np.arange(math.prod(shape), dtype=np.int32).reshape(shape)
  ranges = lambda size: st.tuples(st.integers(0, size), st.integers(0, size)).map(lambda ab: tuple(sorted(ab)))
  boxes = [tuple(data.draw(ranges(size)) for size in shape) for _ in range(data.draw(st.integers(1, 3)))]
  grid = list(itertools.product(*(range(-(-size // part)) for size, part in zip(shape, cell))))
  slices = {number: tuple(slice(i * c, (i + 1) * c) for i, c in zip(number, cell)) for number in grid}
  checksums = {arrays.cell_key(number): arrays.checksum(values[place]) for number, place in slices.items()}
  read = []

  class Store:
    def __getitem__(self, place):
      read.append(place)
      return types.SimpleNamespace(read=lambda: types.SimpleNamespace(result=lambda: values[place]))

  stored = arrays.StoredArrays(None, {'x': arrays.Stored('int32', shape, cell, checksums)}, ValueError)
  stored._stores['x'] = Store()
  for one, part in zip(boxes, stored.read_boxes('x', boxes), strict=True):
    np.testing.assert_array_equal(part, values[tuple(slice(*ends) for ends in one)])
    assert part.dtype == np.int32
  needed = [place for place in slices.values() if any(_overlap(place, one, shape) for one in boxes)]
  assert sorted(map(str, read)) == sorted(str(_clipped(place, shape)) for place in needed)


def _clipped(place, shape):
  return tuple(slice(*part.indices(size)[:2]) for part, size in zip(place, shape))


def _overlap(place, one, shape):
  empty = any(start == stop for start, stop in one)
  parts = zip(_clipped(place, shape), one)
  return not empty and all(part.start < stop and start < part.stop for part, (start, stop) in parts)


def test_a_flipped_bit_is_found(saved, tmp_path):
  wanted, flipped = LEAVES['params/layers/kernel'][3].tobytes(), 0
  for file in (tmp_path / '0' / 'state').rglob('*'):
    if file.is_file() and wanted in (content := bytearray(file.read_bytes())):
      content[content.index(wanted)] ^= 1
      file.write_bytes(content)
      flipped += 1
  assert flipped
  stored = saved.open_arrays(0)
  with pytest.raises(checkpoints.CheckpointError, match='is damaged'):
    stored.read('params/layers/kernel', (3,))


@pytest.mark.parametrize(
  'order, words', [([0, 2], 'came after'), ([0, 0], 'came after'), ([0, 1], 'did not come'), ([1], 'came after')]
)
def test_parts_out_of_order_or_missing_leave_no_checkpoint(tmp_path, order, words):
  leaf = LEAVES['params/layers/kernel']
  with checkpoints.Checkpoints(tmp_path) as found:
    with pytest.raises(ValueError, match=words):
      found.save_parts(0, {'x': leaf.shape}, (('x', (i,), leaf[i]) for i in order), {})
    assert found.steps() == [] and not list(tmp_path.iterdir())
