"""One token a byte of UTF-8, and one to end a document."""

import dataclasses
from typing import ClassVar

import numpy as np

from data.tokenizers import base


@dataclasses.dataclass(frozen=True)
class BytesTokenizer(base.BaseTokenizer):
  """Ids 0..255 are bytes; 256 is the end of a document."""

  format: ClassVar[str] = 'bytes'
  model_file: ClassVar[str] = ''
  vocab_size: ClassVar[int] = 257
  eos_id: ClassVar[int] = 256
  _lossless: ClassVar[bool] = True

  def _encode(self, text):
    return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

  def _decode(self, ids):
    return ids[ids < 256].astype(np.uint8).tobytes().decode(errors='replace')
