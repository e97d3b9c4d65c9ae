"""Span corruption and UL2's mixture of it: T5's numbers, and that source and target together are the text."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import objectives
from objectives import span_corruption, spans
from objectives.span_corruption import Noise
from tests.objectives.material import DOCUMENTS, EOS, SPECIAL, labels, objective_config, packed_rows, segments

T5 = Noise(0.15, 3.0)


def test_a_source_of_512_takes_568_tokens_and_has_114_to_predict():
  assert T5.row_length(512) == 568
  noise, count = T5.counts(568)
  assert (noise, count) == (85, 28) and T5.source_length(568) == 512 and noise + count + 1 == 114


@given(length=st.integers(8, 400), rate=st.floats(0.05, 0.7), mean=st.floats(1.5, 40))
def test_the_raw_row_is_the_longest_that_fits(length, rate, mean):
  noise = Noise(rate, mean)
  assert noise.row_length(length) == max(r for r in range(1, 8 * length) if noise.source_length(r) <= length)


def joined(source, target):
  """The text: each sentinel of the source replaced by what follows it in the target."""
  text, sentinels = [], list(SPECIAL.sentinel_ids)
  assert not target or target[-1] == EOS
  parts = {token: [] for token in target if token in sentinels}
  assert list(parts) == sentinels[: len(parts)]
  for token in target[:-1]:
    if token in parts:
      current = parts[token]
    else:
      current.append(token)
  for token in source:
    text += parts.pop(token) if token in sentinels else [token]
  assert not parts
  return text


@pytest.mark.parametrize('name', ['span_corruption', 'ul2'])
@pytest.mark.parametrize('kind', ['documents', 'none'])
@settings(max_examples=40)
@given(documents=DOCUMENTS, length=st.integers(12, 100), rate=st.sampled_from([0.15, 0.5, 0.05, 0.9]))
@example(documents=([1] * 60, 0), length=60, rate=0.15)
@example(documents=([1] * 60, 0), length=60, rate=0.9)
@example(documents=([2] * 60, 0), length=70, rate=0.5)
@example(documents=([500], 0), length=100, rate=0.15)
def test_source_and_target_are_the_text_with_nothing_lost(name, kind, documents, length, rate):
  objective = objectives.create(objective_config(name, mask_rate=rate), SPECIAL)
  rows, seeds = packed_rows(*documents, objective.row_length(length), kind)
  batch = objective.examples(rows, seeds)
  assert batch['source_tokens'].shape == (len(seeds), length)
  for row in range(len(seeds)):
    sources, targets = segments(batch, row, 'source_'), labels(batch, row)
    inputs = segments(batch, row)
    for segment, text in segments(rows, row).items():
      source, target = sources[segment], targets.get(segment, [])
      if name == 'ul2':
        assert source.pop(0) in SPECIAL.mode_ids.values()
      assert joined(source, target) == text[1:]
      assert inputs.get(segment, []) == [SPECIAL.start_id, *target][:-1][: len(target)] or not target


@given(lengths=st.lists(st.integers(0, 9), max_size=8), total=st.integers(0, 40))
def test_the_fewest_spans_are_the_longest_stretches(lengths, total):
  begins = np.cumsum([0, *(length + 2 for length in lengths)])[:-1]
  stretches = np.stack([begins, begins + lengths], axis=1).astype(int).reshape(-1, 2)
  found = spans.fewest(stretches, total)
  sizes = found[:, 1] - found[:, 0]
  assert sizes.sum() == min(total, sum(lengths)) and (sizes > 0).all() and (np.diff(found[:, 0]) > 0).all()
  needed = next((n for n in range(9) if sum(sorted(lengths)[len(lengths) - n :]) >= sizes.sum()), 0)
  assert len(found) == needed
  assert all(any(a <= start and stop <= b for a, b in stretches) for start, stop in found)


def test_where_random_spans_do_not_fit_the_fewest_do():
  rows, _ = packed_rows([10, 9, 3, 2], 0, 40)
  text = span_corruption.Text.of({key: array[0] for key, array in rows.items()}, SPECIAL)
  tight = span_corruption.Room(40, 16)  # random ones are four, the fewest two
  found = span_corruption.random_spans(text, Noise(0.5, 3.0), tight, SPECIAL, np.random.default_rng(0))
  np.testing.assert_array_equal(found, spans.fewest(text.stretches, 12))


def test_rates_and_spans_of_rows_are_those_of_t5():
  objective = objectives.create(objective_config('span_corruption'), SPECIAL)
  rows, seeds = packed_rows([900, 120, 80, 60, 50, 40] * 30, 3, objective.row_length(256))
  batch = objective.examples(rows, seeds)
  sentinels = np.isin(batch['source_tokens'], SPECIAL.sentinel_ids).sum(1)
  ordinary = (SPECIAL.ordinary[rows['tokens']] & (rows['segment_ids'] > 0)).sum(1)
  # The token that a piece begins with, left over from the piece before, is not counted.
  first = (SPECIAL.ordinary[rows['tokens']] & (rows['positions'] == 0) & (rows['segment_ids'] > 0)).sum(1)
  taken = SPECIAL.ordinary[np.maximum(batch['labels'], 0)] & (batch['labels'] >= 0)
  np.testing.assert_allclose(taken.sum(1), 0.15 * (ordinary - first), atol=0.51)
  np.testing.assert_allclose(sentinels, taken.sum(1) / 3, atol=0.51)
  one_document = batch['source_segment_ids'].max(1) == 1
  full = one_document & (rows['segment_ids'] > 0).all(1)
  assert full.any() and ((batch['source_segment_ids'][full] > 0).sum(1) >= 254).all()


def test_spans_are_anywhere_alike():
  rng = np.random.default_rng(0)
  covered = np.zeros(40)
  for _ in range(4000):
    for start, stop in spans.place(rng, np.array([[0, 40]]), spans.sizes(rng, 6, 2)):
      covered[start:stop] += 1
  assert covered.sum() == 6 * 4000
  middle = covered[6:-6] / 4000
  assert abs(middle - middle.mean()).max() < 5 * np.sqrt(middle.mean() / 4000)


@given(st.integers(0, 1000), st.integers(1, 60), st.data())
def test_sizes_are_positive_and_sum_up(seed, total, data):
  count = data.draw(st.integers(1, total))
  sizes = spans.sizes(np.random.default_rng(seed), total, count)
  assert len(sizes) == count and sizes.min() >= 1 and sizes.sum() == total


def test_ul2_mixes_its_denoisers_by_weight():
  denoisers = (
    {'mode': 'R', 'mask_rate': 0.15, 'mean_span': 3.0, 'weight': 3.0},
    {'mode': 'S', 'mask_rate': 0.25, 'mean_span': 0.0, 'weight': 1.0},
  )
  objective = objectives.create(objective_config('ul2', denoisers=denoisers), SPECIAL)
  rows, seeds = packed_rows([126] * 600, 5, 128)
  batch = objective.examples(rows, seeds)
  sequential = batch['source_tokens'][:, 0] == SPECIAL.mode_ids['S']
  assert abs(sequential.mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 600)
  taken = (SPECIAL.ordinary[np.maximum(batch['labels'], 0)] & (batch['labels'] >= 0)).sum(1)
  assert set(taken[sequential]) == {32} and set(taken[~sequential]) == {19}
  for row in np.flatnonzero(sequential)[:20]:
    assert labels(batch, row)[1] == [SPECIAL.sentinel_ids[0], *rows['tokens'][row, 127 - 32 : 127], EOS]
