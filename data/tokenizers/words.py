"""One token a word: the most frequent ones, and one for all others."""

import collections
import dataclasses
import functools
import json
import re
from collections.abc import Iterable
from typing import ClassVar

import numpy as np

from data.tokenizers import base

_WORDS = re.compile(r'\n|\w+|[^\w\s]')  # line ends, words, punctuation; other spaces are lost


@dataclasses.dataclass(frozen=True)
class WordsTokenizer(base.BaseTokenizer):
  """Id 0 ends a document, 1 is any unknown word (decoded as U+FFFD), the others are words by falling frequency.

  Decoding puts a space between two words of a line. Names such as [MASK], which no word is, are special tokens that
  were reserved, the last ones.
  """

  format: ClassVar[str] = 'words'
  model_file: ClassVar[str] = 'words.json'
  eos_id: ClassVar[int] = 0
  unk_id: ClassVar[int] = 1
  _lossless: ClassVar[bool] = False

  @property
  def vocab_size(self) -> int:
    return len(self._words)

  @functools.cached_property
  def _words(self):
    return ['', base.REPLACEMENT, *json.loads(self.model)]

  @functools.cached_property
  def names(self):
    return {word: i for i, word in enumerate(self._words) if len(word) > 1 and word[0] in '[<'}

  @property
  def pieces(self):
    return [b'' if not word or word in self.names else f' {word}'.encode() for word in self._words]

  @functools.cached_property
  def _ids(self):
    return {word: i for i, word in enumerate(self._words) if i > self.unk_id}

  def _encode(self, text):
    ids = self._ids
    return np.array([ids.get(word, self.unk_id) for word in _WORDS.findall(text)], np.int32)

  def _decode(self, ids):
    out, last = [], '\n'
    for i in ids[ids != self.eos_id]:
      word = self._words[i]
      if word in self.names:
        continue
      out.append(word if '\n' in (word, last) else f' {word}')
      last = word
    return ''.join(out)


def train(texts: Iterable[str], vocab_size: int, normalization: str) -> WordsTokenizer:
  """Returns a tokenizer of the `vocab_size` - 2 most frequent words; of equally frequent ones the first by alphabet."""
  counts = collections.Counter()
  for text in texts:
    counts.update(_WORDS.findall(text))
  ordered = sorted(counts, key=lambda word: (-counts[word], word))
  return WordsTokenizer(normalization, json.dumps(ordered[: max(0, vocab_size - 2)]).encode())
