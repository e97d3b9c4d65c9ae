"""What holds of the examples of every objective: chance by row alone, segments apart, shapes as the axes say."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import objectives
from tests.objectives.material import DOCUMENTS, EOS, SPECIAL, objective_config, packed_rows

NOISY = {'denoising': {'deletion_rate': 0.1, 'masking_rate': 0.1, 'rotation_rate': 0.5}}
OF_TEXT = sorted(set(objectives.OBJECTIVES) - {'seq2seq'})


def create(name, **keys):
  return objectives.create(objective_config(name, **{**NOISY, **keys}), SPECIAL)


@pytest.mark.parametrize('name', OF_TEXT)
@settings(max_examples=15)
@given(documents=DOCUMENTS, length=st.integers(24, 70))
def test_a_row_is_the_same_in_every_batch(name, documents, length):
  objective = create(name)
  rows, seeds = packed_rows(*documents, objective.row_length(length))
  batch = objective.examples(rows, seeds)
  assert set(batch) == set(objective.batch_axes)
  assert all(array.dtype == np.int32 and array.ndim == 2 for array in batch.values())
  order = np.random.default_rng(documents[1]).permutation(len(seeds))[: max(1, len(seeds) // 2)]
  some = objective.examples({key: array[order] for key, array in rows.items()}, seeds[order])
  for key, array in batch.items():
    np.testing.assert_array_equal(some[key], array[order])


@pytest.mark.parametrize('name', OF_TEXT)
def test_another_epoch_or_seed_is_another_draw(name):
  objective = create(name)
  rows, seeds = packed_rows([200], 0, objective.row_length(128))
  first = objective.examples(rows, seeds)
  for change in ([1, 0, 0], [0, 1, 0], [0, 0, 1]):
    other = objective.examples(rows, seeds + change)
    assert name == 'causal' or any(not np.array_equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize('name', OF_TEXT)
@settings(max_examples=15)
@given(documents=DOCUMENTS)
def test_nothing_of_one_segment_is_in_another(name, documents):
  """Each segment has a token of its own, so what stands in a segment tells where it came from."""
  objective = create(name, random_rate=0.0)
  rows, seeds = packed_rows(*documents, objective.row_length(64))
  ordinary = SPECIAL.ordinary[rows['tokens']] & (rows['segment_ids'] > 0)
  rows['tokens'] = np.where(ordinary, rows['segment_ids'], rows['tokens'])
  batch = objective.examples(rows, seeds)
  for side in ('', 'source_'):
    for key in (f'{side}tokens', *(['labels'] if not side and 'targets' not in batch else [])):
      if key in batch:
        found = (batch[key] >= 0) & (batch[key] < EOS) & (batch[f'{side}segment_ids'] > 0)
        np.testing.assert_array_equal(batch[key][found], batch[f'{side}segment_ids'][found])
  if 'targets' in batch:
    counted = batch['labels'] >= 0
    there = np.take_along_axis(batch['segment_ids'], batch['targets'], axis=1)
    np.testing.assert_array_equal(batch['labels'][counted], there[counted])


@pytest.mark.parametrize('name', OF_TEXT)
def test_padding_is_no_example(name):
  objective = create(name)
  rows = {key: np.zeros((2, objective.row_length(32)), np.int32) for key in ('tokens', 'segment_ids', 'positions')}
  batch = objective.examples(rows, np.zeros((2, 3), np.int64))
  assert (batch['labels'] == -1).all() and not batch['segment_ids'].any()


def test_every_objective_says_which_families_it_trains():
  assert set(objectives.FAMILIES) == set(objectives.OBJECTIVES)
  objectives.check(objective_config('causal'), 'decoder', 'text')
  objectives.check(objective_config('seq2seq'), 'encoder_decoder', 'pairs')
  for name, family, corpus, said in (
    (
      'masked',
      'decoder',
      'text',
      'masked trains model.family=encoder, not decoder, which is trained by causal, prefix',
    ),
    ('span_corruption', 'encoder', 'text', 'for example --config.model.family=encoder_decoder'),
    ('causal', 'decoder', 'pairs', 'objective.name=seq2seq with data.corpus=pairs'),
    ('seq2seq', 'encoder_decoder', 'text', 'do not go together'),
  ):
    with pytest.raises(ValueError, match=said):
      objectives.check(objective_config(name), family, corpus)


@pytest.mark.parametrize(
  'name, said',
  [
    ('masked', r'needs a mask token, \[MASK\] or <mask>, in the vocabulary.*--config.data.tokenizer_path=FILE'),
    ('denoising', r'objective.name=denoising needs a mask token'),
    ('span_corruption', 'needs sentinels, <extra_id_0>'),
    ('ul2', 'needs sentinels'),
  ],
)
def test_a_vocabulary_without_the_tokens_is_refused(name, said):
  from data.tokenizers.bytes import BytesTokenizer

  with pytest.raises(ValueError, match=said):
    objectives.create(objective_config(name), BytesTokenizer().special)
  reserved = BytesTokenizer().reserving(objectives.reserved(objective_config(name)))
  objectives.create(objective_config(name), reserved.special)


def test_values_that_do_not_fit_are_refused():
  with pytest.raises(ValueError, match='more than 1 together'):
    create('masked', random_rate=0.6, keep_rate=0.5)
  with pytest.raises(ValueError, match='objective.denoisers is empty'):
    create('ul2', denoisers=())
  for name, needed in (('span_corruption', 114), ('ul2', 341)):
    with pytest.raises(ValueError, match=f'--config.objective.num_sentinels={needed}'):
      objectives.create(objective_config(name)).row_length(2048)
