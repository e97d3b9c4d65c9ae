"""The interface that every tokenizer serves, and what they share: normalisation, fingerprint, pickling."""

import dataclasses
import functools
import hashlib
import json
import unicodedata
from collections.abc import Sequence
from typing import ClassVar, Protocol, Self

import numpy as np

from data.tokenizers import special as special_lib

NORMALIZATIONS = ('none', 'nfc', 'nfkc', 'nfkc-lowercase')
EOS_NAMES = ('</s>', '<|endoftext|>', '<|end_of_text|>', '[SEP]', '<eos>')  # of the token that ends a document
REPLACEMENT = '\ufffd'  # what decoding shows for bytes that are no UTF-8 and for unknown characters


class Tokenizer(Protocol):
  """Text to ids and back.

  Attributes:
    vocab_size: ids are 0 <= id < vocab_size.
    eos_id: the id that ends (and begins) a document; `encode` never returns it.
    lossless: decode(encode(text)) == text for every text that can be written as UTF-8.
    special: what else objectives and generation know of the vocabulary.
    fingerprint: hash of everything that decides what `encode` and `decode` return.
  """

  vocab_size: int
  eos_id: int
  lossless: bool
  special: special_lib.Special
  fingerprint: str

  def encode(self, text: str) -> np.ndarray:
    """Returns int32 ids [length] of `text`, without special tokens.

    Raises:
      UnicodeEncodeError: `text` holds a lone surrogate, which no UTF-8 file can.
    """

  def decode(self, ids: Sequence[int]) -> str:
    """Returns the text of `ids`, without special tokens and ids beyond the vocabulary (a model's table is padded)."""


@dataclasses.dataclass(frozen=True)
class BaseTokenizer:
  """A tokenizer that is a value: what it does follows from its class, `normalization` and `model` alone.

  Attributes:
    normalization: one of NORMALIZATIONS, applied to text before it is tokenized.
    model: the file that a library or this package reads the vocabulary from.
    eos: name of the token that ends a document; '' = the first of EOS_NAMES, or what the library says.
  """

  normalization: str = 'none'
  model: bytes = b''
  eos: str = ''

  format: ClassVar[str]  # name in a saved tokenizer's description
  model_file: ClassVar[str]  # name of the file that holds `model`
  model_optional: ClassVar[bool] = False  # whether an empty `model` is one
  names: ClassVar[dict[str, int]]  # ids of the named special tokens
  pieces: ClassVar[Sequence[bytes]]  # UTF-8 of each id within a running text, with its space; empty: special

  def __post_init__(self):
    if self.normalization not in NORMALIZATIONS:
      raise ValueError(f'data.normalization is {self.normalization!r}; it must be one of {", ".join(NORMALIZATIONS)}')

  def __reduce__(self):  # library objects in cached properties stay behind
    return type(self), (self.normalization, self.model, self.eos)

  @functools.cached_property
  def fingerprint(self) -> str:
    named = f'{self.eos}\n' if self.eos else ''
    digest = hashlib.sha256(f'{self.format}\n{self.normalization}\n{named}'.encode())
    digest.update(self.model)
    return digest.hexdigest()

  @functools.cached_property
  def special(self) -> special_lib.Special:
    return special_lib.describe(self.eos_id, self.names, self.pieces)

  def reserving(self, names: Sequence[str]) -> Self:
    """This tokenizer with more special tokens, whose ids come behind all others; in a text their names are text.

    The tokenizer itself where it has them all. Here of those whose `model` is a JSON list that may end in such names.
    """
    if not (lacking := [name for name in names if name not in self.names]):
      return self
    return dataclasses.replace(self, model=json.dumps([*json.loads(self.model or b'[]'), *lacking]).encode())

  @property
  def lossless(self) -> bool:
    return self.normalization == 'none' and self._lossless

  def encode(self, text: str) -> np.ndarray:
    text.encode()  # lone surrogates end here, not in a library's panic or as half a character
    return self._encode(normalize(text, self.normalization))

  def decode(self, ids: Sequence[int]) -> str:
    ids = np.asarray(ids, np.int64).reshape(-1)
    return self._decode(ids[(ids >= 0) & (ids < self.vocab_size)])


def normalize(text: str, normalization: str) -> str:
  """Returns `text` in the Unicode normal form `normalization`, one of NORMALIZATIONS."""
  if normalization == 'none':
    return text
  if normalization == 'nfkc-lowercase':
    return unicodedata.normalize('NFKC', text).lower()
  return unicodedata.normalize(normalization.upper(), text)


def choose_eos(ids: dict[str, int], names: Sequence[str] = EOS_NAMES) -> int:
  """Returns the id of the first of `names` in `ids`.

  Raises:
    LookupError: there is none.
  """
  for name in names:
    if name in ids:
      return ids[name]
  raise LookupError(f'its vocabulary has no token that ends a document: one of {", ".join(names)}')
