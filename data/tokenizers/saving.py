"""Tokenizers in folders: a description and, where there is a vocabulary, the file of the library that made it."""

import json
import pathlib

from data import cache
from data.tokenizers import base, characters, hugging_face, ids, sentencepieces, words
from data.tokenizers import bytes as bytes_tokenizer

DESCRIPTION = 'meshlm_tokenizer.json'
CLASSES = (
  bytes_tokenizer.BytesTokenizer,
  characters.CharactersTokenizer,
  words.WordsTokenizer,
  sentencepieces.SentencePieceTokenizer,
  hugging_face.HuggingFaceTokenizer,
  ids.IdsTokenizer,
)
FORMATS = {cls.format: cls for cls in CLASSES}


def save(tokenizer: base.Tokenizer, directory: str | pathlib.Path) -> None:
  """Writes `tokenizer` to `directory`, whole or not at all; what was in there is replaced."""
  description = {
    'format': tokenizer.format,
    'normalization': tokenizer.normalization,
    'eos': tokenizer.eos,
    'vocab_size': tokenizer.vocab_size,
    'eos_id': tokenizer.eos_id,
    'fingerprint': tokenizer.fingerprint,
  }
  with cache.new_directory(pathlib.Path(directory)) as unfinished:
    if tokenizer.model or not tokenizer.model_optional:
      (unfinished / tokenizer.model_file).write_bytes(tokenizer.model)
    (unfinished / DESCRIPTION).write_text(json.dumps(description, indent=2) + '\n')


def load(directory: str | pathlib.Path) -> base.Tokenizer:
  """Returns the tokenizer that `save` wrote to `directory`.

  Raises:
    FileNotFoundError: there is none.
    ValueError: its files are damaged or of an unknown format.
  """
  path = pathlib.Path(directory) / DESCRIPTION
  if not path.exists():
    raise FileNotFoundError(f'{directory} holds no tokenizer: {DESCRIPTION} is missing')
  try:
    description = json.loads(path.read_text())
    cls = FORMATS[description['format']]
    file = path.parent / cls.model_file
    model = b'' if cls.model_optional and not file.exists() else file.read_bytes()
    tokenizer = cls(description['normalization'], model, description.get('eos', ''))
    intact = tokenizer.fingerprint == description['fingerprint']
  except (KeyError, TypeError, ValueError, FileNotFoundError) as error:
    raise ValueError(f'{path.parent} holds no readable tokenizer: {error!r}') from error
  if not intact:
    raise ValueError(f'the tokenizer in {path.parent} was changed after it was saved: its fingerprint differs')
  return tokenizer
