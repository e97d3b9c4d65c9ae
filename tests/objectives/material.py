"""Rows and a vocabulary for tests of objectives; `packed_rows` packs as training does."""

import numpy as np
from hypothesis import strategies as st

from configs import base
from data import packing
from data.tokenizers.bytes import BytesTokenizer
from objectives.span_corruption import sentinel_names

TOKENIZER = BytesTokenizer().reserving(['[MASK]', '[R]', '[S]', '[X]', *sentinel_names(100)])
SPECIAL = TOKENIZER.special
EOS = SPECIAL.eos_id

# Lengths of documents, short ones among them, and a seed.
DOCUMENTS = st.tuples(st.lists(st.integers(1, 90) | st.integers(1, 4), min_size=1, max_size=60), st.integers(0, 2**31))


def objective_config(name, **keys):
  config = base.get_config().objective
  config.name = name
  config.update(keys)
  return config


def packed_rows(lengths, seed, row_length, kind='documents'):
  """All rows of documents of such lengths with random bytes, and a seed for each row."""
  rng = np.random.default_rng(seed)
  documents = [rng.integers(32, 127, length) for length in lengths]
  stream = np.concatenate([[EOS], *(np.append(document, EOS) for document in documents)]).astype(np.int32)
  rows = packing.pack(np.cumsum([0, *(length + 1 for length in lengths)]), row_length, kind)
  ids = np.arange(len(rows))
  batch = packing.build(rows, ids, lambda positions: stream[positions])
  return batch, np.stack([np.full_like(ids, seed), 0 * ids, ids], axis=1)


def segments(batch, row, side=''):
  """The tokens of each segment of a row by its id."""
  ids = batch[f'{side}segment_ids'][row]
  return {int(i): batch[f'{side}tokens'][row][ids == i].tolist() for i in np.unique(ids[ids > 0])}


def labels(batch, row):
  ids = batch['segment_ids'][row]
  return {int(i): batch['labels'][row][ids == i].tolist() for i in np.unique(ids[ids > 0])}
