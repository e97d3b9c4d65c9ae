"""Texts that are ids in decimal, for models without a tokenizer."""

import dataclasses
from typing import ClassVar

import numpy as np

from data.tokenizers import base


@dataclasses.dataclass(frozen=True)
class IdsTokenizer(base.BaseTokenizer):
  """'12 7 305' is the tokens 12, 7 and 305. `model` is the size of the vocabulary, `eos` an id; '' = the last one.

  `encode` raises ValueError for a text that is something else.
  """

  format: ClassVar[str] = 'ids'
  model_file: ClassVar[str] = 'vocab_size.txt'
  names: ClassVar[dict[str, int]] = {}
  _lossless: ClassVar[bool] = False

  @property
  def vocab_size(self) -> int:
    return int(self.model)

  @property
  def eos_id(self) -> int:
    return int(self.eos) if self.eos else self.vocab_size - 1

  @property
  def pieces(self) -> list[bytes]:
    return [b'' if i == self.eos_id else f' {i}'.encode() for i in range(self.vocab_size)]

  def _encode(self, text):
    words = text.split()
    for word in words:
      if not word.isdecimal() or int(word) >= self.vocab_size:
        raise ValueError(
          f'this model has no tokenizer: its texts are ids below {self.vocab_size} such as "12 7", not {word!r}'
        )
    return np.array([int(word) for word in words], np.int32)

  def _decode(self, ids):
    return ''.join(f' {i}' for i in ids if i != self.eos_id)
