"""BART's denoising: each kind of noise alone, and its published rates."""

import math

import numpy as np
from hypothesis import given, settings

import objectives
from objectives.denoising import poisson_sizes
from tests.objectives.material import (
  DOCUMENTS,
  EOS,
  SPECIAL,
  TOKENIZER,
  labels,
  objective_config,
  packed_rows,
  segments,
)

NONE = {
  'permute_sentences': False,
  'deletion_rate': 0.0,
  'masking_rate': 0.0,
  'infilling_rate': 0.0,
  'rotation_rate': 0.0,
}


def examples(rows, seeds, **noise):
  config = objective_config('denoising', denoising=NONE | {'infilling_mean': 3.0} | noise)
  return objectives.create(config, SPECIAL).examples(rows, seeds)


def shares(noise):
  """Of rows of several documents: ordinary tokens before and after, and masks."""
  rows, seeds = packed_rows([900, 120, 80, 60] * 30, 0, 256)
  body = SPECIAL.ordinary[rows['tokens']] & (rows['positions'] > 0)
  batch = examples(rows, seeds, **noise)
  kept = SPECIAL.ordinary[batch['source_tokens']] & (batch['source_segment_ids'] > 0)
  return body.sum(1), kept.sum(1), (batch['source_tokens'] == SPECIAL.mask_id).sum(1)


@settings(max_examples=30)
@given(documents=DOCUMENTS)
def test_targets_are_the_texts_and_sources_are_no_longer(documents):
  rows, seeds = packed_rows(*documents, 64)
  everything = {'permute_sentences': True, 'deletion_rate': 0.1, 'masking_rate': 0.1}
  noisy = examples(rows, seeds, **everything, infilling_rate=0.3, rotation_rate=0.5)
  for batch in (noisy, examples(rows, seeds)):
    for row in range(len(seeds)):
      texts = segments(rows, row)
      assert labels(batch, row) == {i: text[1:] for i, text in texts.items() if len(text) > 1}
      for i, source in segments(batch, row, 'source_').items():
        assert source[0] == EOS
        if batch is not noisy:
          assert source == [EOS, *texts[i][1:]]
    assert (noisy['source_segment_ids'] > 0).sum() <= (rows['segment_ids'] > 0).sum()


def test_infilling_takes_three_tenths_in_spans_of_poisson_length():
  body, kept, masks = shares({'infilling_rate': 0.3})
  np.testing.assert_allclose(body - kept, 0.3 * body, atol=0.51)
  count, taken = masks.sum(), (body - kept).sum()
  # The last span of a row is cut to the rate, which takes less than a token from it in the mean.
  assert abs(taken / count - 3) < 4 * math.sqrt(3 / count) + 3 * len(body) / count
  sizes, empty = poisson_sizes(np.random.default_rng(0), 60_000, 3.0)
  assert sizes.sum() == 60_000
  drawn = np.bincount(sizes, minlength=9)[1:9] / (len(sizes) + empty)
  expected = [math.exp(-3) * 3**k / math.factorial(k) for k in range(1, 9)]
  np.testing.assert_allclose(drawn, expected, atol=4 * math.sqrt(0.25 / len(sizes)))
  assert abs(empty / (len(sizes) + empty) - math.exp(-3)) < 4 * math.sqrt(0.05 / len(sizes))


def test_deletion_and_masking_take_their_shares():
  body, kept, masks = shares({'deletion_rate': 0.2})
  np.testing.assert_allclose(body - kept, 0.2 * body, atol=0.51)
  assert not masks.any()
  body, kept, masks = shares({'masking_rate': 0.2})
  np.testing.assert_allclose(masks, 0.2 * body, atol=0.51)
  np.testing.assert_array_equal(body - kept, masks)


def of_texts(*texts, **noise):
  pieces = [np.concatenate([[EOS], TOKENIZER.encode(text), [EOS]]) for text in texts]
  rows = {
    'tokens': np.concatenate(pieces)[None].astype(np.int32),
    'segment_ids': np.repeat(np.arange(1, len(texts) + 1), [len(p) for p in pieces])[None].astype(np.int32),
    'positions': np.concatenate([np.arange(len(p)) for p in pieces])[None].astype(np.int32),
  }
  batches = [examples(rows, np.array([[0, epoch, 0]]), **noise) for epoch in range(120)]
  return [[TOKENIZER.decode(source) for source in segments(batch, 0, 'source_').values()] for batch in batches]


def test_sentences_change_places_within_their_text():
  seen = of_texts('One. Two! Three?', 'Four. Five.', permute_sentences=True)
  orders = {first for first, _ in seen}
  assert {second for _, second in seen} == {'Four. Five.', ' Five.Four.'}
  assert len(orders) == 6 and all(sorted(order.replace(' ', '')) == sorted('One.Two!Three?') for order in orders)
  assert all(part in order for order in orders for part in ('One.', ' Two!', ' Three?'))


def test_a_rotated_text_begins_anywhere_and_goes_on_with_its_beginning():
  seen = [text for [text] in of_texts('abcdef', rotation_rate=0.5)]
  assert all(text in 'abcdefabcdef' and len(text) == 6 for text in seen)
  assert len(set(seen)) == 6 and 50 < seen.count('abcdef') < 95
