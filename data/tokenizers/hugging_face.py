"""Subwords of the `tokenizers` library: WordPiece as in BERT, byte-level BPE as in GPT-2, and any tokenizer.json."""

import collections
import dataclasses
import functools
import json
import re
from collections.abc import Iterable
from typing import ClassVar

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from data.tokenizers import base

_BYTE_LEVEL_EOS = '<|endoftext|>'
_WORDPIECE_SPECIAL = ['[UNK]', '[SEP]']
_WORDPIECE_CHARACTERS = 1000  # rarer characters are unknown, as in BERT
_BYTE_PIECE = re.compile('<0x([0-9A-F]{2})>')  # how sentencepiece writes a byte


@dataclasses.dataclass(frozen=True)
class HuggingFaceTokenizer(base.BaseTokenizer):
  """A tokenizer.json; names of special tokens in a text are text."""

  format: ClassVar[str] = 'tokenizers'
  model_file: ClassVar[str] = 'tokenizer.json'

  @functools.cached_property
  def _tokenizer(self):
    tokenizer = tokenizers.Tokenizer.from_str(self.model.decode())
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer

  @functools.cached_property
  def vocab_size(self) -> int:
    return max(self._tokenizer.get_vocab().values()) + 1

  @functools.cached_property
  def eos_id(self) -> int:
    return base.choose_eos(self._tokenizer.get_vocab(), (self.eos,) if self.eos else base.EOS_NAMES)

  @functools.cached_property
  def names(self):
    return {token['content']: token['id'] for token in json.loads(self.model)['added_tokens']}

  @functools.cached_property
  def pieces(self):
    spec = json.loads(self.model)
    special = {token['id'] for token in spec['added_tokens'] if token['special']}
    to_bytes = _pieces_to_bytes(spec)
    pieces = [b''] * self.vocab_size
    for piece, i in self._tokenizer.get_vocab().items():
      pieces[i] = b'' if i in special else to_bytes(piece)
    return pieces

  def reserving(self, names):
    if not (lacking := [name for name in names if name not in self.names]):
      return self
    tokenizer = tokenizers.Tokenizer.from_str(self.model.decode())
    tokenizer.add_special_tokens(lacking)
    return dataclasses.replace(self, model=tokenizer.to_str().encode())

  @functools.cached_property
  def _lossless(self):
    """Byte-level through and through: nothing changes the text, every byte has a token, no step drops anything."""
    spec = json.loads(self.model)
    before = spec['pre_tokenizer'] or {}
    steps = before.get('pretokenizers', [before])
    byte_level = [step for step in steps if step.get('type') == 'ByteLevel']
    keeps = all(step.get('behavior') != 'Removed' and not step.get('add_prefix_space') for step in steps)
    known = {step.get('type') for step in steps} <= {'ByteLevel', 'Split', 'Digits', 'Punctuation'}
    all_special = all(token['special'] for token in spec['added_tokens'])
    has_bytes = set(pre_tokenizers.ByteLevel.alphabet()) <= set(self._tokenizer.get_vocab())
    decodes = (spec['decoder'] or {}).get('type') == 'ByteLevel'
    return bool(byte_level) and keeps and known and all_special and has_bytes and decodes and not spec['normalizer']

  def _encode(self, text):
    return np.array(self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids, np.int32)

  def _decode(self, ids):
    return self._tokenizer.decode(ids.tolist(), skip_special_tokens=True)


def _pieces_to_bytes(spec):
  """What a tokenizer.json's pieces write, as a function of a piece."""
  steps = json.dumps([spec['pre_tokenizer'], spec['decoder']])
  if '"ByteLevel"' in steps:
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]  # bytes that GPT-2 writes as themselves
    others = [byte for byte in range(256) if byte not in printable]
    byte_of = {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
    return lambda piece: bytes(byte_of[c] for c in piece) if set(piece) <= set(byte_of) else piece.encode()
  if spec['model']['type'] == 'WordPiece':
    prefix = spec['model']['continuing_subword_prefix']
    return lambda piece: (piece.removeprefix(prefix) if piece.startswith(prefix) else f' {piece}').encode()

  def to_bytes(piece):
    if byte := _BYTE_PIECE.fullmatch(piece):
      return bytes([int(byte[1], 16)])
    return piece.replace('\u2581', ' ').encode()

  return to_bytes


def train_byte_bpe(texts: Iterable[str], vocab_size: int, normalization: str) -> HuggingFaceTokenizer:
  """Returns a byte-level BPE as in GPT-2 (Radford et al. 2019); lossless.

  Raises:
    ValueError: `vocab_size` does not hold the 256 bytes and the end of a document.
  """
  if vocab_size < 257:
    raise ValueError(f'data.vocab_size is {vocab_size}; byte-bpe needs at least 257: 256 bytes and one special token')
  tokenizer = tokenizers.Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  tokenizer.train_from_iterator(
    texts,
    trainers.BpeTrainer(
      vocab_size=vocab_size,
      special_tokens=[_BYTE_LEVEL_EOS],
      initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
      show_progress=False,
    ),
  )
  return HuggingFaceTokenizer(normalization, tokenizer.to_str().encode())


def train_wordpiece(texts: Iterable[str], vocab_size: int, normalization: str) -> HuggingFaceTokenizer:
  """Returns a WordPiece vocabulary as in BERT (Devlin et al. 2018), with case and accents kept; lossy.

  Raises:
    ValueError: `vocab_size` does not hold the characters of the corpus.
  """
  texts = _without_rare_characters(list(texts))
  # The library numbers the initial pieces in the order of a randomly seeded hash map, and breaks ties by number.
  # Pieces passed as special tokens are numbered in our order, and so every run makes the same merges.
  initial = sorted(_trained_vocabulary(texts, 0, _WORDPIECE_SPECIAL).keys() - set(_WORDPIECE_SPECIAL))
  if len(initial) + len(_WORDPIECE_SPECIAL) > vocab_size:
    raise ValueError(
      f'data.vocab_size is {vocab_size}; wordpiece needs at least '
      f'{len(initial) + len(_WORDPIECE_SPECIAL)} for the characters of this corpus'
    )
  vocabulary = _trained_vocabulary(texts, vocab_size, _WORDPIECE_SPECIAL + initial)
  tokenizer = _wordpiece(models.WordPiece(vocab=vocabulary, unk_token=_WORDPIECE_SPECIAL[0]))
  tokenizer.add_special_tokens(_WORDPIECE_SPECIAL)
  return HuggingFaceTokenizer(normalization, tokenizer.to_str().encode())


def _without_rare_characters(texts):
  counts = collections.Counter()
  for text in texts:
    counts.update(text)
  ordered = sorted(counts, key=lambda character: (-counts[character], character))
  table = {ord(character): ' ' for character in ordered[_WORDPIECE_CHARACTERS:]}
  return [text.translate(table) for text in texts] if table else texts


def _trained_vocabulary(texts, vocab_size, special_tokens):
  tokenizer = _wordpiece(models.WordPiece(unk_token=_WORDPIECE_SPECIAL[0]))
  tokenizer.train_from_iterator(
    texts,
    trainers.WordPieceTrainer(
      vocab_size=vocab_size,
      special_tokens=special_tokens,
      limit_alphabet=2 * _WORDPIECE_CHARACTERS,
      show_progress=False,
    ),
  )
  return tokenizer.get_vocab()


def _wordpiece(model):
  tokenizer = tokenizers.Tokenizer(model)
  tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
  tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  tokenizer.decoder = decoders.WordPiece(cleanup=False)
  return tokenizer
