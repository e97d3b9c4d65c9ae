"""Checkpoints written and read part by part, against those of Orbax."""

import numpy as np
import pytest

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


def test_parts_are_read_in_order_and_verified(saved):
  shapes, stored = saved.open_arrays(0)
  assert shapes == SHAPES
  np.testing.assert_array_equal(stored.read('params/table', (), np.float16), LEAVES['params/table'].astype(np.float16))
  for i in range(4):
    np.testing.assert_array_equal(stored.read('params/layers/kernel', (i,)), LEAVES['params/layers/kernel'][i])
  with pytest.raises(ValueError, match='read out of order'):
    stored.read('params/layers/kernel', (2,))


def test_a_flipped_bit_is_found(saved, tmp_path):
  wanted, flipped = LEAVES['params/layers/kernel'][3].tobytes(), 0
  for file in (tmp_path / '0' / 'state').rglob('*'):
    if file.is_file() and wanted in (content := bytearray(file.read_bytes())):
      content[content.index(wanted)] ^= 1
      file.write_bytes(content)
      flipped += 1
  assert flipped
  _, stored = saved.open_arrays(0)
  with pytest.raises(checkpoints.CheckpointError, match='is damaged'):
    for i in range(4):
      stored.read('params/layers/kernel', (i,))


@pytest.mark.parametrize(
  'order, words', [([0, 2], 'came after'), ([0, 0], 'came after'), ([0, 1], 'did not come'), ([1], 'came after')]
)
def test_parts_out_of_order_or_missing_leave_no_checkpoint(tmp_path, order, words):
  leaf = LEAVES['params/layers/kernel']
  with checkpoints.Checkpoints(tmp_path) as found:
    with pytest.raises(ValueError, match=words):
      found.save_parts(0, {'x': leaf.shape}, (('x', (i,), leaf[i]) for i in order), {})
    assert found.steps() == [] and not list(tmp_path.iterdir())
