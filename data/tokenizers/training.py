"""From a config and documents to a tokenizer, trained once for each corpus."""

import functools
import hashlib
import logging
import pathlib
import re
from collections.abc import Sequence

import sentencepiece
import tokenizers

from data import cache
from data.tokenizers import base, characters, hugging_face, saving, sentencepieces, words
from data.tokenizers import bytes as bytes_tokenizer

TRAINERS = {
  'characters': characters.train,
  'words': words.train,
  'sentencepiece-bpe': functools.partial(sentencepieces.train, 'bpe'),
  'sentencepiece-unigram': functools.partial(sentencepieces.train, 'unigram'),
  'wordpiece': hugging_face.train_wordpiece,
  'byte-bpe': hugging_face.train_byte_bpe,
}
_RECIPE = 1  # raise it when a trainer makes something else of the same corpus: older cached tokenizers are not taken
_TRAINING_CHARACTERS = 100_000_000  # text of a larger corpus that trainers see: evenly spread documents

# What a trainer sees as a text: several lines, begun at a space. In a megabyte without a space subword trainers would
# take hours.
_PASSAGE = re.compile(r'.{1,2000}(?:(?<! )(?= )|\Z)|.{1,2000}', re.DOTALL)

_log = logging.getLogger(__name__)


def train(data_config, documents: Sequence, reserved: Sequence[str] = ()) -> base.Tokenizer:
  """Returns the tokenizer that `data_config` names, from the cache if it was trained on these documents before.

  Args:
    data_config: the group `data` of a config; read are tokenizer, tokenizer_path, vocab_size, normalization, cache_dir.
    documents: objects with a `text`. `bytes` and `file` need none.
    reserved: names of special tokens that a tokenizer made here has at the end of its vocabulary, in this order; they
      count in data.vocab_size. A `file` is taken as it is.

  Raises:
    ValueError: a setting is unknown or does not fit the corpus, or a tokenizer's file is none.
    FileNotFoundError: data.tokenizer_path does not exist.
  """
  kind, normalization = data_config.tokenizer, data_config.normalization
  if kind == 'file':
    return load_file(data_config.tokenizer_path, normalization)
  if kind == 'bytes':
    return bytes_tokenizer.BytesTokenizer(normalization).reserving(reserved)
  if kind not in TRAINERS:
    raise ValueError(f'data.tokenizer is {kind!r}; it must be one of {", ".join(["bytes", *TRAINERS, "file"])}')
  vocab_size = data_config.vocab_size - len(reserved)
  if vocab_size < 1:
    raise ValueError(
      f'data.vocab_size is {data_config.vocab_size}, but {len(reserved)} tokens are reserved, {reserved[0]} to '
      f'{reserved[-1]}; raise it'
    )
  try:
    return _trained(data_config, documents, vocab_size).reserving(reserved)
  except ValueError as error:
    if not reserved:
      raise
    raise ValueError(f'{error}; of data.vocab_size={data_config.vocab_size}, {len(reserved)} are reserved') from error


def _trained(data_config, documents, vocab_size):
  kind, normalization = data_config.tokenizer, data_config.normalization
  path = cache.cache_dir(data_config) / 'tokenizers' / f'{kind}-{_key(data_config, vocab_size, documents)}'
  with cache.one_at_a_time(path):
    if path.exists():
      try:
        return saving.load(path)
      except (FileNotFoundError, ValueError) as error:
        _log.warning('%s; it is trained again', error)
    texts = _training_texts(documents, normalization)
    if not any(text.strip() for text in texts):
      raise ValueError(f'data.tokenizer is {kind!r}, which is trained on the corpus, but the corpus has no text')
    tokenizer = TRAINERS[kind](texts, vocab_size, normalization)
    saving.save(tokenizer, path)
    return tokenizer


def load_file(path: str, normalization: str) -> base.Tokenizer:
  """Returns the tokenizer of a sentencepiece .model, a tokenizer.json or the tokenizer/ of a run; see `train`."""
  classes = {'.model': sentencepieces.SentencePieceTokenizer, '.json': hugging_face.HuggingFaceTokenizer}
  file = pathlib.Path(path).expanduser()
  if (file / saving.DESCRIPTION).is_file():
    saved = saving.load(file)
    if saved.normalization != normalization:
      raise ValueError(
        f'data.normalization is {normalization!r}, but the tokenizer in data.tokenizer_path={path!r} has '
        f'{saved.normalization!r}; set that'
      )
    return saved
  if file.suffix not in classes:
    raise ValueError(
      f'data.tokenizer_path is {path!r}; it must be a sentencepiece .model or a tokenizer.json, or '
      'the tokenizer folder of a run'
    )
  if not file.is_file():
    raise FileNotFoundError(f'data.tokenizer_path is {path!r}, which is no file')
  tokenizer = classes[file.suffix](normalization, file.read_bytes())
  try:
    tokenizer.vocab_size  # noqa: B018  # the library reads the file here
  except Exception as error:  # `tokenizers` raises Exception itself
    raise ValueError(f'data.tokenizer_path is {path!r}, which is no readable tokenizer: {error}') from error
  try:
    tokenizer.eos_id  # noqa: B018
  except LookupError as error:
    raise ValueError(f'data.tokenizer_path is {path!r}; {error.args[0]}') from error
  return tokenizer


def _key(data_config, vocab_size, documents):
  """Hash of everything that training depends on."""
  settings = (
    _RECIPE,
    data_config.tokenizer,
    vocab_size,
    data_config.normalization,
    sentencepiece.__version__,
    tokenizers.__version__,
  )
  digest = hashlib.sha256(repr(settings).encode())
  for document in documents:
    data = document.text.encode()
    digest.update(len(data).to_bytes(8, 'little'))
    digest.update(data)
  return digest.hexdigest()[:32]


def _training_texts(documents, normalization):
  size = sum(len(document.text) for document in documents)
  stride = -(-size // _TRAINING_CHARACTERS) or 1
  texts = (base.normalize(document.text, normalization) for document in documents[::stride])
  return [passage for text in texts for passage in _PASSAGE.findall(text)]
