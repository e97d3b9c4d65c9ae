"""Tokenizers of Hugging Face directories: read as ours, kept byte for byte, and written for transformers."""

import json
import pathlib
from collections.abc import Mapping

import tokenizers as library
from tokenizers import decoders, models, normalizers, pre_tokenizers

from data.tokenizers import Tokenizer, base
from data.tokenizers.bytes import BytesTokenizer
from data.tokenizers.hugging_face import HuggingFaceTokenizer
from data.tokenizers.ids import IdsTokenizer
from data.tokenizers.sentencepieces import SentencePieceTokenizer

_SENTENCEPIECE = ('tokenizer.model', 'spiece.model', 'sentencepiece.bpe.model')
_KEPT = (
  *('tokenizer.json', 'tokenizer_config.json', 'special_tokens_map.json', 'added_tokens.json', 'vocab.json'),
  *('merges.txt', 'vocab.txt', *_SENTENCEPIECE, 'chat_template.jinja', 'chat_template.json', 'generation_config.json'),
)
# Models whose vocab.json and merges.txt are those of GPT-2's byte-level BPE; others split words in their own way.
_LIKE_GPT2 = ('gpt2', 'roberta', 'bart')
_NORMALIZERS = {
  'none': [],
  'nfc': [{'type': 'NFC'}],
  'nfkc': [{'type': 'NFKC'}],
  'nfkc-lowercase': [{'type': 'NFKC'}, {'type': 'Lowercase'}],
}


def read(directory: pathlib.Path, config: Mapping) -> tuple[Tokenizer, dict[str, bytes]]:
  """The tokenizer of a directory, and the files that an export gives back as they are.

  A directory without a tokenizer has the one whose texts are ids in decimal.

  Args:
    directory: of the model.
    config: its config.json.

  Raises:
    ValueError: the tokenizer cannot be read, or says nowhere which token ends a text.
  """
  kept = {name: (directory / name).read_bytes() for name in _KEPT if (directory / name).is_file()}
  sentencepiece = next((name for name in _SENTENCEPIECE if name in kept), None)
  try:
    if 'tokenizer.json' in kept:
      tokenizer = HuggingFaceTokenizer('none', kept['tokenizer.json'])
    elif 'vocab.json' in kept and 'merges.txt' in kept:
      tokenizer = HuggingFaceTokenizer('none', _byte_level(directory, kept, config))
    elif sentencepiece:
      tokenizer = SentencePieceTokenizer('none', kept[sentencepiece])
    elif 'vocab.txt' in kept:
      raise ValueError(f'{directory} has vocab.txt but no tokenizer.json; {_how_to_make(directory)}')
    else:
      return IdsTokenizer('none', str(config['vocab_size']).encode(), _first(config.get('eos_token_id'))), kept
    end = _end(tokenizer, kept, config)
    return type(tokenizer)('none', tokenizer.model, end), kept
  except ValueError:
    raise
  except Exception as error:  # `tokenizers` raises Exception itself
    raise ValueError(f'{directory} has no readable tokenizer: {error}') from error


def write(tokenizer: Tokenizer, kept: Mapping[str, bytes], length: int) -> dict[str, bytes]:
  """The files of a tokenizer: those that were kept, or new ones that transformers reads.

  Args:
    tokenizer: ours.
    kept: see `read`; {} for a tokenizer that is not from there.
    length: of the longest text.

  Raises:
    ValueError: transformers has no such tokenizer.
  """
  if kept or isinstance(tokenizer, IdsTokenizer):
    return dict(kept)
  if isinstance(tokenizer, HuggingFaceTokenizer):
    spec = json.loads(tokenizer.model)
  elif isinstance(tokenizer, BytesTokenizer):
    spec = json.loads(_bytes(tokenizer).to_str())
  elif isinstance(tokenizer, SentencePieceTokenizer):
    spec = json.loads(_pieces(tokenizer).to_str())
  else:
    raise ValueError(
      f'the tokenizer {tokenizer.format!r} has no counterpart in transformers; train with '
      'data.tokenizer=byte-bpe, wordpiece, sentencepiece-bpe, sentencepiece-unigram or bytes to export'
    )
  steps = _NORMALIZERS[tokenizer.normalization]
  if steps:
    own = [spec['normalizer']] if spec['normalizer'] else []
    spec['normalizer'] = {'type': 'Sequence', 'normalizers': steps + own}
  names = {i: name for name, i in library.Tokenizer.from_str(json.dumps(spec)).get_vocab().items()}
  end = names[tokenizer.eos_id]
  described = {
    'tokenizer_class': 'PreTrainedTokenizerFast',
    'model_max_length': length,
    'clean_up_tokenization_spaces': False,
    'bos_token': end,
    'eos_token': end,
  }
  if (mask := tokenizer.special.mask_id) is not None:
    described['mask_token'] = names[mask]
  return {
    'tokenizer.json': json.dumps(spec, ensure_ascii=False).encode(),
    'tokenizer_config.json': (json.dumps(described, indent=2, ensure_ascii=False) + '\n').encode(),
  }


def special_ids(tokenizer: Tokenizer) -> dict[str, int]:
  """What config.json and generation_config.json say of the token around documents."""
  return {'bos_token_id': tokenizer.eos_id, 'eos_token_id': tokenizer.eos_id}


def _byte_level(directory, kept, config) -> bytes:
  if config.get('model_type') not in _LIKE_GPT2:
    raise ValueError(
      f'{directory} has vocab.json and merges.txt but no tokenizer.json, and how {config.get("model_type")} splits '
      f'words is not said in them; {_how_to_make(directory)}'
    )
  merges = [tuple(line.split(' ')) for line in kept['merges.txt'].decode().splitlines() if line and line[0] != '#']
  vocabulary = json.loads(kept['vocab.json'])
  spec = library.Tokenizer(models.BPE(vocabulary, merges))
  spec.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(_described(kept).get('add_prefix_space', False)))
  spec.decoder = decoders.ByteLevel()
  added = json.loads(kept.get('added_tokens.json', b'{}'))
  special = [_text(value) for value in _special(kept).values() if isinstance(value, (str, dict))]
  known = ['<|endoftext|>', *special, *sorted(added, key=added.get)]
  spec.add_special_tokens([name for name in dict.fromkeys(known) if name in vocabulary or name in added])
  return spec.to_str().encode()


def _end(tokenizer, kept, config) -> str:
  """The name of the token that ends a text: what the tokenizer's files say, or a usual one, or the config's."""
  said = _special(kept).get('eos_token') or _special(kept).get('sep_token')
  if said:
    return _text(said)
  try:
    tokenizer.eos_id  # noqa: B018  # one of the usual names
    return ''
  except LookupError as error:
    number = _first(config.get('eos_token_id'))
    if number and isinstance(tokenizer, HuggingFaceTokenizer):
      return library.Tokenizer.from_str(tokenizer.model.decode()).id_to_token(int(number))
    raise ValueError(
      f'nothing says which token ends a text: set eos_token in tokenizer_config.json ({error.args[0]})'
    ) from error


def _described(kept) -> dict:
  return json.loads(kept.get('tokenizer_config.json', b'{}'))


def _special(kept) -> dict:
  names = json.loads(kept.get('special_tokens_map.json', b'{}')) | _described(kept)
  return {name: value for name, value in names.items() if name.endswith('_token') and value}


def _text(value) -> str:
  return value['content'] if isinstance(value, dict) else value


def _first(ids) -> str:
  """The first of one or several ids, in decimal; '' for none."""
  ids = ids if isinstance(ids, list) else [ids]
  return '' if not ids or ids[0] is None else str(ids[0])


def _bytes(tokenizer: BytesTokenizer) -> library.Tokenizer:
  """One token a byte, and the special ones."""
  alphabet = _byte_characters()
  made = library.Tokenizer(models.BPE({character: byte for byte, character in enumerate(alphabet)}, []))
  made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  made.decoder = decoders.ByteLevel()
  made.add_special_tokens([base.EOS_NAMES[1], *sorted(tokenizer.names, key=tokenizer.names.get)])
  return made


def _byte_characters() -> list[str]:
  """The characters that stand for bytes 0 to 255: printable ones for themselves, others from U+0100 on."""
  printable = [*range(ord('!'), ord('~') + 1), *range(ord('¡'), ord('¬') + 1), *range(ord('®'), ord('ÿ') + 1)]
  others = [byte for byte in range(256) if byte not in printable]
  characters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}
  return [characters[byte] for byte in range(256)]


def _pieces(tokenizer: SentencePieceTokenizer) -> library.Tokenizer:
  """A sentencepiece model as one of `tokenizers`: the same pieces, merged in the order of their scores."""
  from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

  spec = sentencepiece_model_pb2.ModelProto.FromString(tokenizer.model)
  if spec.normalizer_spec.add_dummy_prefix or spec.normalizer_spec.remove_extra_whitespaces:
    raise ValueError(
      'the sentencepiece model changes spaces, which is not written as tokenizer.json; give its file along by hand'
    )
  processor = SentencePieceProcessor(model_proto=tokenizer.model)
  numbers = range(processor.get_piece_size())
  names, scores = [processor.id_to_piece(i) for i in numbers], [processor.get_score(i) for i in numbers]
  unknown = processor.unk_id()
  if spec.trainer_spec.model_type == spec.trainer_spec.UNIGRAM:
    made = library.Tokenizer(models.Unigram(list(zip(names, scores)), unknown, byte_fallback=True))
  else:
    merges = [
      (-scores[i], (names[i][:cut], names[i][cut:]))
      for i in numbers
      if not (processor.is_control(i) or processor.is_unknown(i) or processor.is_byte(i))
      for cut in range(1, len(names[i]))
    ]
    known = set(names)
    order = [pair for _, pair in sorted(merges, key=lambda merge: merge[0]) if known.issuperset(pair)]
    model = models.BPE(dict(zip(names, numbers)), order, unk_token=names[unknown], byte_fallback=True, fuse_unk=True)
    made = library.Tokenizer(model)
  made.normalizer = normalizers.Replace(' ', '\u2581')
  made.decoder = decoders.Sequence([decoders.Replace('\u2581', ' '), decoders.ByteFallback(), decoders.Fuse()])
  made.add_special_tokens([names[i] for i in numbers if processor.is_control(i) or i == unknown])
  return made


def _how_to_make(directory) -> str:
  return f"write one: AutoTokenizer.from_pretrained('{directory}').save_pretrained('{directory}')"
