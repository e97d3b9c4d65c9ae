"""Tokenizers both ways, against the library on which transformers' fast tokenizers rest."""

import json

import pytest
import tokenizers as library

from data.tokenizers import bytes as bytes_tokenizer
from data.tokenizers import hugging_face, load, save, sentencepieces
from interop import tokenizer_files

CORPUS = [
  'def main(arguments):\n    return "größer"  # 42 times\n\n',
  'The quick brown fox   jumps over the lazy dog, again and again.\n',
  'Ein Absatz über Wörter; noch einer über Zahlen: 1234567890.\n',
] * 5
TEXTS = [*CORPUS[:3], ' leading', 'trailing ', '\ttabs\r\n', '日本語 and 🌍 <|endoftext|>', '', '   ']
OURS = {
  'byte-bpe': lambda: hugging_face.train_byte_bpe(CORPUS, 400, 'none'),
  'byte-bpe nfkc': lambda: hugging_face.train_byte_bpe(CORPUS, 400, 'nfkc-lowercase'),
  'wordpiece': lambda: hugging_face.train_wordpiece(CORPUS, 150, 'none'),
  'sentencepiece-bpe': lambda: sentencepieces.train('bpe', CORPUS, 400, 'none'),
  'sentencepiece-unigram': lambda: sentencepieces.train('unigram', CORPUS, 400, 'none'),
  'bytes': lambda: bytes_tokenizer.BytesTokenizer('none'),
}


def fast(files):
  """What transformers' fast tokenizer does with these files."""
  tokenizer = library.Tokenizer.from_str(files['tokenizer.json'].decode())
  tokenizer.encode_special_tokens = True
  return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


def put(directory, files):
  directory.mkdir(parents=True, exist_ok=True)
  for name, content in files.items():
    (directory / name).write_bytes(content)
  return directory


@pytest.mark.parametrize('name', OURS)
def test_our_tokenizers_are_written_with_the_same_ids(name, tmp_path):
  tokenizer = OURS[name]().reserving(('[MASK]',))
  files = tokenizer_files.write(tokenizer, {}, 128)
  encode = fast(files)
  for text in TEXTS:
    assert tokenizer.encode(text).tolist() == encode(text), text
  back, kept = tokenizer_files.read(put(tmp_path, files), {'model_type': 'llama'})
  assert (back.eos_id, back.vocab_size) == (tokenizer.eos_id, tokenizer.vocab_size) and kept == files
  assert back.special.mask_id == tokenizer.special.mask_id is not None
  assert json.loads(files['tokenizer_config.json'])['mask_token'] == '[MASK]'
  assert back.decode(back.encode(CORPUS[0])) == tokenizer.decode(tokenizer.encode(CORPUS[0]))


def test_what_is_kept_is_given_back_byte_for_byte(tmp_path):
  files = tokenizer_files.write(OURS['byte-bpe'](), {}, 128)
  files |= {
    'chat_template.jinja': b'\xe2\x80\x8b{{ x }}\r\n',
    'special_tokens_map.json': b'{ "eos_token" :"<|endoftext|>"}',
  }
  tokenizer, kept = tokenizer_files.read(put(tmp_path, files), {})
  assert tokenizer_files.write(tokenizer, kept, 128) == files


def test_vocabulary_and_merges_of_gpt2_are_the_whole_tokenizer(tmp_path):
  spec = json.loads(OURS['byte-bpe']().model)
  files = {
    'vocab.json': json.dumps(spec['model']['vocab']).encode(),
    'merges.txt': '\n'.join(['#version: 0.2', *(' '.join(pair) for pair in spec['model']['merges'])]).encode(),
  }
  tokenizer, _ = tokenizer_files.read(put(tmp_path, files), {'model_type': 'gpt2'})
  for text in TEXTS:
    assert tokenizer.encode(text).tolist() == OURS['byte-bpe']().encode(text).tolist()
  with pytest.raises(ValueError, match='how qwen3 splits words is not said'):
    tokenizer_files.read(tmp_path, {'model_type': 'qwen3'})


def test_a_directory_with_a_sentencepiece_model_only(tmp_path):
  ours = OURS['sentencepiece-unigram']()
  tokenizer, kept = tokenizer_files.read(put(tmp_path, {'tokenizer.model': ours.model}), {})
  assert tokenizer.encode(TEXTS[0]).tolist() == ours.encode(TEXTS[0]).tolist() and list(kept) == ['tokenizer.model']


@pytest.mark.parametrize('form', ['<x>', {'content': '<x>'}])
def test_the_end_of_a_text_is_what_the_files_say_and_survives_saving(tmp_path, form):
  spec = library.Tokenizer.from_str(OURS['byte-bpe']().model.decode())
  spec.add_special_tokens(['<x>'])
  files = {'tokenizer.json': spec.to_str().encode(), 'tokenizer_config.json': json.dumps({'eos_token': form}).encode()}
  tokenizer, _ = tokenizer_files.read(put(tmp_path / 'a', files), {})
  assert tokenizer.eos_id == spec.token_to_id('<x>') != OURS['byte-bpe']().eos_id
  save(tokenizer, tmp_path / 'b')
  assert load(tmp_path / 'b') == tokenizer and load(tmp_path / 'b').eos_id == tokenizer.eos_id


def test_a_model_without_a_tokenizer_reads_ids(tmp_path):
  tokenizer, kept = tokenizer_files.read(tmp_path, {'vocab_size': 40, 'eos_token_id': [3, 4]})
  assert (tokenizer.eos_id, tokenizer.vocab_size, kept) == (3, 40, {})
  assert tokenizer.encode('0 39 7').tolist() == [0, 39, 7] and tokenizer.decode([0, 39, 3, 7]) == ' 0 39 7'
  with pytest.raises(ValueError, match="texts are ids below 40.*not 'x'"):
    tokenizer.encode('1 x')


def test_files_that_are_none_are_refused(tmp_path):
  with pytest.raises(ValueError, match='no readable tokenizer'):
    tokenizer_files.read(put(tmp_path / 'a', {'tokenizer.json': b'{}'}), {})
  with pytest.raises(ValueError, match='vocab.txt but no tokenizer.json'):
    tokenizer_files.read(put(tmp_path / 'b', {'vocab.txt': b''}), {})
