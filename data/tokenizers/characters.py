"""One token a character of the corpus."""

import collections
import dataclasses
import functools
import json
from collections.abc import Iterable
from typing import ClassVar

import numpy as np

from data.tokenizers import base

_UNICODE = 0x110000  # code points


@dataclasses.dataclass(frozen=True)
class CharactersTokenizer(base.BaseTokenizer):
  """Id 0 ends a document, 1 is any unknown character (decoded as U+FFFD), the others are characters by code point.

  Longer entries of `model` are the names of special tokens that were reserved, the last ones.
  """

  format: ClassVar[str] = 'characters'
  model_file: ClassVar[str] = 'characters.json'
  eos_id: ClassVar[int] = 0
  unk_id: ClassVar[int] = 1
  _lossless: ClassVar[bool] = False  # characters that the corpus does not have are lost

  @property
  def vocab_size(self) -> int:
    return 2 + len(self._entries)

  @functools.cached_property
  def _entries(self):
    return json.loads(self.model)

  @functools.cached_property
  def _code_points(self):
    return np.array([ord(entry) for entry in self._entries if len(entry) == 1], np.int64)

  @functools.cached_property
  def names(self):
    return {entry: 2 + i for i, entry in enumerate(self._entries) if len(entry) > 1}

  @property
  def pieces(self):
    entries = ['', base.REPLACEMENT, *self._entries]
    return [b'' if len(entry) > 1 else entry.encode() for entry in entries]

  @functools.cached_property
  def _ids(self):
    ids = np.full(_UNICODE, self.unk_id, np.int32)
    ids[self._code_points] = 2 + np.arange(len(self._code_points))
    return ids

  def _encode(self, text):
    return self._ids[np.frombuffer(text.encode('utf-32-le'), np.uint32)]

  def _decode(self, ids):
    characters = np.concatenate([[0, ord(base.REPLACEMENT)], self._code_points])
    ids = ids[(ids != self.eos_id) & (ids < len(characters))]
    return characters[ids].astype('<u4').tobytes().decode('utf-32-le')


def train(texts: Iterable[str], vocab_size: int, normalization: str) -> CharactersTokenizer:
  """Returns a tokenizer of the `vocab_size` - 2 most frequent characters; of equally frequent ones the lowest."""
  counts = collections.Counter()
  for text in texts:
    counts.update(text)
  ordered = sorted(counts, key=lambda character: (-counts[character], character))
  kept = sorted(ordered[: max(0, vocab_size - 2)])
  return CharactersTokenizer(normalization, json.dumps(kept).encode())
