import heapq
import itertools
import json

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

import data
import objectives
from configs import base
from data import packing, pipeline

ROW_LENGTH = 33


def _prepare(tmp_path, seed=0, row_length=ROW_LENGTH, **keys):
  rng = np.random.default_rng(7)
  mixture = []
  for name, letters, documents, weight in (('big', 'abcdefgh', 150, 51), ('small', 'ABCDEFGH', 20, 49)):
    texts = [''.join(rng.choice(list(letters), length)) for length in rng.integers(1, 120, documents)]
    (tmp_path / name).write_text('\n\n'.join(texts))
    mixture.append({'corpus': 'text', 'path': str(tmp_path / name), 'weight': weight})
  data_config = base.get_config().data
  data_config.update(
    {
      'corpus': 'text',
      'path': str(tmp_path / 'big'),
      'document': 'blank-line',
      'tokenizer': 'bytes',
      'cache_dir': str(tmp_path / 'cache'),
      'mixture': tuple(mixture),
    }
  )
  if keys.get('corpus') == 'mixture':
    keys['path'] = ''
  data_config.update(keys)
  return data.prepare(data_config, row_length, seed)


def _take(batches, n):
  return [next(batches) for _ in range(n)]


def _assert_equal(first, second):
  assert len(first) == len(second)
  for a, b in zip(first, second, strict=True):
    for name in ('tokens', 'segment_ids', 'positions'):
      np.testing.assert_array_equal(a[name], b[name])


def _row_keys(batches):
  return [row.tobytes() for batch in batches for row in np.concatenate([batch['tokens'], batch['segment_ids']], 1)]


@pytest.fixture(params=[{}, {'packing': 'none'}, {'corpus': 'mixture'}], ids=['documents', 'none', 'mixture'])
def dataset(request, tmp_path):
  return _prepare(tmp_path, **request.param)


def test_stream_continues_bit_exactly_from_a_state_that_went_through_json(dataset):
  batches = data.train_batches(dataset, 8, seed=3)
  first = _take(batches, 37)
  state = json.loads(json.dumps(batches.get_state()))
  epoch = batches.epoch
  later = _take(batches, 80)
  fresh = data.train_batches(dataset, 8, seed=3)
  fresh.set_state(state)
  assert fresh.epoch == epoch
  _assert_equal(_take(fresh, 80), later)
  fresh.set_state(state)  # also after it has delivered and prefetched others
  _assert_equal(_take(fresh, 3), later[:3])
  _assert_equal(_take(data.train_batches(dataset, 8, seed=3), 37), first)


@pytest.mark.parametrize(
  'changed, told',
  [
    ({'row_length': 34}, 'the documents, the tokenizer, the sequence length'),
    ({'rows': 4}, 'data.batch_tokens changed .rows was 8 and is 4'),
    ({'seed': 4}, 'the seed changed .seed was 3 and is 4'),
  ],
)
def test_state_of_other_batches_is_refused(tmp_path, changed, told):
  settings = {'row_length': ROW_LENGTH, 'rows': 8, 'seed': 3}
  batches = []
  for now in (settings, {**settings, **changed}):
    dataset = _prepare(tmp_path, row_length=now['row_length'])
    batches.append(data.train_batches(dataset, now['rows'], now['seed']))
  with pytest.raises(ValueError, match=told):
    batches[1].set_state(batches[0].get_state())


@pytest.mark.parametrize('packing_name', ['documents', 'none'])
def test_an_epoch_is_every_row_once_in_an_order_of_its_own(tmp_path, packing_name):
  dataset = _prepare(tmp_path, packing=packing_name)
  batches = data.train_batches(dataset, 1, seed=0)
  rows = _row_keys(itertools.islice(batches, 2 * dataset.num_rows))
  assert batches.epoch == 2
  first, second = rows[: dataset.num_rows], rows[dataset.num_rows :]
  assert sorted(first) == sorted(second)
  assert sorted(first) == sorted(_row_keys(data.eval_batches(dataset.train, ROW_LENGTH, 1, packing_name)))
  other = _row_keys(itertools.islice(data.train_batches(dataset, 1, seed=1), dataset.num_rows))
  assert sorted(other) == sorted(first)
  assert len({tuple(order) for order in (first, second, other, sorted(first))}) == 4


def test_batches_cross_the_end_of_an_epoch(tmp_path):
  dataset = _prepare(tmp_path)
  rows = 7
  assert dataset.num_rows % rows
  batches = _take(data.train_batches(dataset, rows, seed=0), dataset.num_rows)
  one_by_one = itertools.islice(data.train_batches(dataset, 1, seed=0), rows * dataset.num_rows)
  assert _row_keys(batches) == _row_keys(one_by_one)


def test_examples_get_the_seed_the_epoch_and_the_row_whatever_the_batch(dataset):
  def numbered(rows, seeds):
    return {**rows, 'seeds': seeds}

  def delivered(rows, count):
    batches = data.train_batches(dataset, rows, 5, numbered)
    taken = _take(batches, count)
    batches.close()
    return {name: np.concatenate([batch[name] for batch in taken]) for name in taken[0]}

  count = 4 * (2 * dataset.num_rows // 4)
  one, four = delivered(1, count), delivered(4, count // 4)
  for name in one:
    np.testing.assert_array_equal(one[name], four[name])
  seeds = one['seeds']
  assert seeds.shape == (count, 3) and np.all(seeds[:, 0] == 5) and len(np.unique(seeds, axis=0)) == count
  texts = {}
  for (_, epoch, row_id), tokens in zip(seeds.tolist(), one['tokens'], strict=True):
    assert 0 <= row_id < dataset.num_rows and epoch >= 0
    assert texts.setdefault(row_id, tokens.tobytes()) == tokens.tobytes()
  assert seeds[:, 1].max() > 0


def test_examples_of_an_evaluation_are_always_the_same(tmp_path):
  split = _prepare(tmp_path).validation
  numbered = lambda rows, seeds: {**rows, 'seeds': seeds}
  passes = [
    [batch['seeds'] for batch in data.eval_batches(split, 17, rows, 'documents', examples=numbered)]
    for rows in (4, 4, 1)
  ]
  np.testing.assert_array_equal(np.concatenate(passes[0]), np.concatenate(passes[1]))
  alone = np.concatenate(passes[2])
  np.testing.assert_array_equal(np.concatenate(passes[0])[: len(alone)], alone)
  assert not alone[:, :2].any() and sorted(alone[:, 2]) == list(range(len(alone)))


def test_closing_ends_the_iterator(dataset):
  batches = data.train_batches(dataset, 8, seed=0)
  next(batches)
  batches.close()
  with pytest.raises(Exception, match='closed'):
    next(batches)


@pytest.mark.parametrize('weights', [(51, 49), (9, 1)])
def test_mixture_delivers_its_shares_of_tokens(tmp_path, weights):
  mixture = tuple(
    {'corpus': 'text', 'path': str(tmp_path / name), 'weight': weight}
    for name, weight in zip(('big', 'small'), weights, strict=True)
  )
  dataset = _prepare(tmp_path, corpus='mixture', mixture=mixture)
  batches = data.train_batches(dataset, 8, seed=0)
  delivered = []
  for batch in itertools.islice(batches, 2000):
    segments = batch['segment_ids']
    targets = ((segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)).sum(1)
    upper, lower = (((first <= batch['tokens']) & (batch['tokens'] < first + 8)).any(1) for first in (65, 97))
    assert (upper != lower).all()  # a row holds documents of one component
    delivered.append((targets[lower].sum(), targets[upper].sum()))
  assert batches.epoch > 5
  so_far = np.cumsum(delivered, axis=0)
  error = np.abs(so_far - so_far.sum(1, keepdims=True) * np.array(weights) / sum(weights))
  assert error.max() < 12 * ROW_LENGTH
  assert error[-1].max() / so_far[-1].sum() < 1e-3


def _fairest(frequencies, n):
  """The same sequence one element at a time: the component whose next element is due first."""
  due = [(0.5 / frequency, i, 0) for i, frequency in enumerate(frequencies)]
  heapq.heapify(due)
  for _ in range(n):
    _, i, number = heapq.heappop(due)
    yield i, number
    heapq.heappush(due, ((number + 1.5) / frequencies[i], i, number + 1))


@hypothesis.given(st.lists(st.floats(1e-3, 1), min_size=1, max_size=5), st.integers(0, 300), st.integers(0, 40))
def test_interleaving_can_start_anywhere(weights, start, size):
  frequencies = np.array(weights) / np.sum(weights)
  components, numbers = pipeline.interleave(frequencies, start, start + size)
  expected = list(_fairest(frequencies, start + size))[start:]
  assert list(zip(components.tolist(), numbers.tolist(), strict=True)) == expected


@hypothesis.given(st.lists(st.floats(1e-3, 1), min_size=1, max_size=5), st.integers(1, 10**12))
def test_interleaving_is_fair_at_every_point(weights, start):
  frequencies = np.array(weights) / np.sum(weights)
  components, numbers = pipeline.interleave(frequencies, start, start + 20)
  assert len(components) == 20
  for component, number in zip(components, numbers, strict=True):
    assert abs(number - start * frequencies[component]) < 20 + len(weights)


def test_shares_are_exact_over_whole_epochs():
  rows = tuple(
    packing.Rows(np.zeros(size), np.full(size, targets + 1), np.arange(size + 1), 99)
    for size, targets in ((10, 90), (3, 23))
  )
  delivered = pipeline.row_frequencies(rows, (0.51, 0.49)) * [90, 23]
  np.testing.assert_allclose(delivered / delivered.sum(), [0.51, 0.49], rtol=1e-12)


@pytest.mark.parametrize('packing_name', ['documents', 'none'])
def test_evaluation_reads_every_target_once_and_always_the_same(tmp_path, packing_name):
  split = _prepare(tmp_path).validation
  passes = [list(data.eval_batches(split, 17, 4, packing_name)) for _ in range(2)]
  _assert_equal(*passes)
  segments = np.stack([batch['segment_ids'] for batch in passes[0]])
  assert segments.shape[1:] == (4, 17)
  assert ((segments[..., 1:] == segments[..., :-1]) & (segments[..., 1:] > 0)).sum() == split.num_targets
  some = list(data.eval_batches(split, 17, 4, packing_name, max_batches=2))
  _assert_equal(some, passes[0][:2])


def test_batch_without_rows_is_told(tmp_path):
  with pytest.raises(ValueError, match='batch_tokens must be at least data.sequence_length'):
    data.train_batches(_prepare(tmp_path), 0, 0)


@pytest.mark.parametrize('random_crop', [False, True])
def test_the_rows_of_several_processes_are_those_of_one(dataset, random_crop):
  """Whatever the number of processes, and in whatever way they share the rows of a batch."""
  objective = objectives.create(base.get_config().objective)
  whole = _take(data.train_batches(dataset, 8, 3, objective.examples, random_crop), 12)
  for shares in ([[0, 1, 2, 3], [4, 5, 6, 7]], [[1, 4], [0, 7], [2, 3], [5, 6]]):
    streams = [data.train_batches(dataset, 8, 3, objective.examples, random_crop, np.array(own)) for own in shares]
    for expected, *parts in zip(whole, *(_take(stream, 12) for stream in streams), strict=True):
      for own, part in zip(shares, parts, strict=True):
        assert part.keys() == expected.keys()
        for name, values in part.items():
          np.testing.assert_array_equal(values, expected[name][own])


def test_the_validation_rows_of_several_processes_are_those_of_one(dataset):
  make = lambda own: list(data.eval_batches(dataset.train, ROW_LENGTH, 8, 'documents', own_rows=own))
  for expected, *parts in zip(make(None), make(np.arange(4)), make(np.arange(4, 8)), strict=True):
    together = {name: np.concatenate([part[name] for part in parts]) for name in expected}
    for name, values in expected.items():
      np.testing.assert_array_equal(together[name], values)
