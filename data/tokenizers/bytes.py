"""One token a byte of UTF-8, and one to end a document."""

import dataclasses
import functools
import json
from typing import ClassVar

import numpy as np

from data.tokenizers import base


@dataclasses.dataclass(frozen=True)
class BytesTokenizer(base.BaseTokenizer):
  """Ids 0..255 are bytes; 256 is the end of a document; special tokens that were reserved follow."""

  format: ClassVar[str] = 'bytes'
  model_file: ClassVar[str] = 'special_tokens.json'
  model_optional: ClassVar[bool] = True
  eos_id: ClassVar[int] = 256
  _lossless: ClassVar[bool] = True

  @property
  def vocab_size(self) -> int:
    return 257 + len(self.names)

  @functools.cached_property
  def names(self):
    return {name: 257 + i for i, name in enumerate(json.loads(self.model or b'[]'))}

  @property
  def pieces(self):
    return [bytes([i]) if i < 256 else b'' for i in range(self.vocab_size)]

  def _encode(self, text):
    return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

  def _decode(self, ids):
    return ids[ids < 256].astype(np.uint8).tobytes().decode(errors='replace')
