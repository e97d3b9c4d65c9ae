"""Augmentation of training rows: its shares, its chance by row, and documents cut at random places."""

import numpy as np
import pytest

import data
from configs import base
from data import augmentation
from data.tokenizers.bytes import BytesTokenizer

SPECIAL = BytesTokenizer().reserving(['[MASK]']).special


def config(**keys):
  data_config = base.get_config().data
  data_config.augmentation.update(keys)
  return data_config


def rows_and_seeds():
  tokens = np.random.default_rng(0).integers(32, 127, (64, 200), dtype=np.int32)
  tokens[:, ::20] = SPECIAL.eos_id
  ids = np.arange(64)
  return {'tokens': tokens, 'labels': tokens + 1}, np.stack([0 * ids, 0 * ids, ids], axis=1)


def test_tokens_are_dropped_and_replaced_at_their_rates_by_row_alone():
  examples = data.augmented(
    lambda rows, seeds: dict(rows), config(token_dropout=0.1, token_replacement=0.2).augmentation, SPECIAL
  )
  rows, seeds = rows_and_seeds()
  batch = examples(rows, seeds)
  ordinary = rows['tokens'] != SPECIAL.eos_id
  np.testing.assert_array_equal(batch['labels'], rows['labels'])
  np.testing.assert_array_equal(batch['tokens'][~ordinary], rows['tokens'][~ordinary])
  changed = batch['tokens'] != rows['tokens']
  dropped = batch['tokens'] == SPECIAL.mask_id
  for share, expected in ((dropped, 0.1), (changed & ~dropped, 0.2 * 255 / 256)):
    assert abs(share[ordinary].mean() - expected) < 4 * np.sqrt(expected / ordinary.sum())
  some = examples({key: values[10:20] for key, values in rows.items()}, seeds[10:20])
  np.testing.assert_array_equal(some['tokens'], batch['tokens'][10:20])
  assert not np.array_equal(examples(rows, seeds + [0, 1, 0])['tokens'], batch['tokens'])


def test_off_is_off_and_what_cannot_be_is_refused():
  examples = lambda rows, seeds: rows
  assert data.augmented(examples, config().augmentation, SPECIAL) is examples
  with pytest.raises(ValueError, match=r'token_dropout=0.1 needs a mask token'):
    data.augmented(examples, config(token_dropout=0.1).augmentation, BytesTokenizer().special)
  with pytest.raises(ValueError, match='more than 1 together'):
    augmentation.check(config(token_dropout=0.6, token_replacement=0.6))
  none = config(random_crop=True)
  none.packing = 'none'
  with pytest.raises(ValueError, match='set data.packing=documents'):
    augmentation.check(none)


def test_a_long_document_is_cut_elsewhere_in_every_epoch_and_a_short_one_stays_whole(tmp_path):
  documents = [
    ''.join(chr(0x4E00 + i) for i in range(start, start + n)) for start, n in ((0, 400), (400, 150), (600, 9))
  ]
  (tmp_path / 'text').write_text('\n\n'.join(documents))
  data_config = config(random_crop=True, token_dropout=0.1)
  data_config.update(
    {
      'corpus': 'text',
      'path': f'{tmp_path}/text',
      'document': 'blank-line',
      'tokenizer': 'characters',
      'validation_fraction': 0.0,
      'cache_dir': f'{tmp_path}/cache',
    }
  )
  dataset = data.prepare(data_config, 65, 0)
  assert dataset.tokenizer.special.mask_id == dataset.tokenizer.vocab_size - 1

  def batches(rows, count, position=None):
    stream = data.train_batches(dataset, rows, 0, random_crop=True)
    if position:
      stream.set_state(position)
    found = [next(stream) for _ in range(count)]
    state = stream.get_state()
    stream.close()
    return found, state

  one, _ = batches(1, 30 * dataset.num_rows)
  several, state = batches(dataset.num_rows, 30)
  for key in ('tokens', 'segment_ids', 'positions'):
    np.testing.assert_array_equal(np.concatenate([b[key] for b in one]), np.concatenate([b[key] for b in several]))
  begins = set()
  for batch in several:
    short = 0
    for tokens, segments in zip(batch['tokens'], batch['segment_ids'], strict=True):
      for segment in np.unique(segments[segments > 0]):
        text = dataset.tokenizer.decode(tokens[segments == segment])
        assert any(text in document for document in documents)
        short += text == documents[2]
        begins.add(text[:1])
    assert short == 1
  assert len(begins) > 100
  later, _ = batches(dataset.num_rows, 1, state)
  resumed, _ = batches(dataset.num_rows, 31)
  np.testing.assert_array_equal(later[0]['tokens'], resumed[30]['tokens'])
