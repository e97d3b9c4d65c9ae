import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from data import packing

EOS = -7

documents_and_length = st.tuples(
  st.lists(st.lists(st.integers(0, 99), min_size=0, max_size=30), min_size=1, max_size=20), st.integers(2, 17)
)


def _stream(documents):
  stream = [EOS]
  for document in documents:
    stream += [*document, EOS]
  return np.array(stream)


def _boundaries(documents):
  return np.cumsum([0, *(len(document) + 1 for document in documents)])


def _rows(documents, row_length, packing_name):
  rows = packing.pack(_boundaries(documents), row_length, packing_name)
  batch = packing.build(rows, np.arange(len(rows)), lambda positions: _stream(documents)[positions])
  return rows, batch


def _predicted(batch):
  """(input, target) where both lie in one segment, as the causal objective counts them."""
  pairs = []
  for tokens, segments in zip(batch['tokens'].tolist(), batch['segment_ids'].tolist(), strict=True):
    pairs += [
      (a, b) for a, b, m, n in zip(tokens, tokens[1:], segments, segments[1:], strict=False) if m == n and n > 0
    ]
  return pairs


@hypothesis.given(documents_and_length, st.sampled_from(['documents', 'none']))
def test_every_token_is_predicted_once_from_the_one_before(case, packing_name):
  documents, row_length = case
  stream = _stream(documents).tolist()
  rows, batch = _rows(documents, row_length, packing_name)
  predicted = _predicted(batch)
  assert sorted(predicted) == sorted(zip(stream, stream[1:], strict=False))
  assert rows.num_targets == len(predicted) == sum(len(document) + 1 for document in documents)


@hypothesis.given(documents_and_length, st.sampled_from(['documents', 'none']))
def test_positions_restart_in_each_segment_and_padding_is_at_the_end(case, packing_name):
  rows, batch = _rows(*case, packing_name)
  assert {array.dtype for array in batch.values()} == {np.dtype(np.int32)}
  for tokens, segments, positions in zip(batch['tokens'], batch['segment_ids'], batch['positions'], strict=True):
    used = np.count_nonzero(segments)
    assert used > 0 and (segments[used:] == 0).all() and (tokens[used:] == 0).all() and (positions[used:] == 0).all()
    steps = np.diff(segments[:used])
    assert segments[0] == 1 and set(steps) <= {0, 1}
    starts = np.concatenate([[0], np.flatnonzero(steps) + 1])
    np.testing.assert_array_equal(positions[:used], np.arange(used) - starts[segments[:used] - 1])
  assert rows.slots_used == pytest.approx((batch['segment_ids'] > 0).mean())


@hypothesis.given(documents_and_length)
def test_packed_segments_are_pieces_of_one_document_that_overlap_by_a_token(case):
  documents, row_length = case
  rows, batch = _rows(documents, row_length, 'documents')
  expected = []
  for document in documents:
    whole = [EOS, *document, EOS]
    expected += [tuple(whole[i : i + row_length]) for i in range(0, len(whole) - 1, row_length - 1)]
  pieces = []
  for tokens, segments in zip(batch['tokens'], batch['segment_ids'], strict=True):
    pieces += [tuple(tokens[segments == segment].tolist()) for segment in range(1, segments.max() + 1)]
  assert sorted(pieces) == sorted(expected)


@hypothesis.given(documents_and_length)
def test_windows_follow_the_stream(case):
  documents, row_length = case
  stream = _stream(documents)
  _, batch = _rows(documents, row_length, 'none')
  for i, (tokens, segments) in enumerate(zip(batch['tokens'], batch['segment_ids'], strict=True)):
    window = stream[i * (row_length - 1) :][:row_length]
    np.testing.assert_array_equal(tokens[segments > 0], window)
    assert set(segments) <= {0, 1}


@hypothesis.given(documents_and_length)
def test_padding_rows_are_empty(case):
  documents, row_length = case
  rows = packing.pack(_boundaries(documents), row_length, 'documents')
  batch = packing.build(rows, np.array([-1, 0, -1]), lambda positions: _stream(documents)[positions])
  for array in batch.values():
    assert array.shape == (3, row_length) and not array[[0, 2]].any()
  assert batch['segment_ids'][1].any()


def _best_fit_one_by_one(lengths, capacity):
  """Textbook best-fit decreasing; the sorted fill of its bins."""
  gaps = []
  for length in sorted(lengths, reverse=True):
    fitting = [gap for gap in gaps if gap >= length]
    if fitting:
      gaps.remove(min(fitting))
    gaps.append((min(fitting) if fitting else capacity) - length)
  return sorted(capacity - gap for gap in gaps)


@hypothesis.given(hnp.arrays(np.int64, st.integers(0, 60), elements=st.integers(1, 20)), st.integers(20, 40))
def test_best_fit_is_textbook_best_fit_decreasing(lengths, capacity):
  bins = packing.best_fit(lengths, capacity, np.random.default_rng(0))
  fill = np.bincount(bins, lengths).astype(int).tolist() if len(bins) else []
  assert sorted(fill) == _best_fit_one_by_one(lengths.tolist(), capacity)


def test_seed_decides_only_among_equal_lengths():
  boundaries = np.cumsum(np.concatenate([[0], np.random.default_rng(0).integers(1, 40, 500)]))
  a, b = (packing.pack(boundaries, 65, 'documents', seed) for seed in (0, 1))
  assert len(a) == len(b) and not np.array_equal(a.starts, b.starts)
  np.testing.assert_array_equal(a.starts, packing.pack(boundaries, 65, 'documents', 0).starts)


@pytest.mark.parametrize('mean', [5, 60, 400])
def test_a_hundred_thousand_documents_fill_their_rows(mean):
  lengths = np.random.default_rng(0).exponential(mean, 100_000).astype(np.int64) + 1
  rows = packing.pack(np.concatenate([[0], np.cumsum(lengths)]), 257, 'documents')
  assert rows.slots_used > 0.98


def test_concatenated_rows_keep_their_pieces():
  boundaries = np.array([0, 5, 7, 30, 41])
  parts = [packing.pack(boundaries[:3], 9, 'documents'), packing.pack(boundaries[2:], 9, 'documents')]
  joined = packing.Rows.concatenate(parts)
  batches = [packing.build(rows, np.arange(len(rows)), lambda positions: positions) for rows in (*parts, joined)]
  for name in batches[0]:
    np.testing.assert_array_equal(np.concatenate([batches[0][name], batches[1][name]]), batches[2][name])


def test_wrong_settings_are_told():
  with pytest.raises(ValueError, match="data.packing is 'bins'; it must be documents or none"):
    packing.pack(np.array([0, 3]), 5, 'bins')
  with pytest.raises(ValueError, match='sequence_length'):
    packing.pack(np.array([0, 3]), 1, 'none')
