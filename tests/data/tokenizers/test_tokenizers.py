import functools
import itertools
import json
import pickle
import re
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import tokenizers
from data.tokenizers import base, characters, hugging_face, sentencepieces, words

LOSSLESS = ('bytes', 'sentencepiece-bpe', 'sentencepiece-unigram', 'byte-bpe')
LOSSY = ('characters', 'words', 'wordpiece')
HARD = (
  '\u2581',
  '\0',
  '\n',
  '\n\n',
  ' ',
  '    ',
  '\t',
  '\r\n',
  '</s>',
  '<unk>',
  '<0x0A>',
  '<|endoftext|>',
  '[SEP]',
  'e\u0301',
  '\ufffd',
  '\ufeff',
  '\u2585',
  '\U0010ffff',
  'the',
  'self.',
)
TEXT = st.lists(st.text(st.characters(exclude_categories=['Cs'])) | st.sampled_from(HARD)).map(''.join)


@pytest.mark.parametrize('kind', LOSSLESS)
@given(text=TEXT)
def test_decoding_gives_the_text_back(trained, kind, text):
  tokenizer = trained[kind]
  assert tokenizer.lossless
  assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize('kind', LOSSLESS)
def test_every_code_point_survives(trained, kind):
  text = ''.join(chr(i) for i in range(0, 0x110000, 7) if not 0xD800 <= i < 0xE000)
  assert trained[kind].decode(trained[kind].encode(text)) == text


@pytest.mark.parametrize('kind', LOSSLESS + LOSSY)
@given(text=TEXT)
def test_ids_are_int32_inside_the_vocabulary_and_never_end_a_document(trained, kind, text):
  tokenizer = trained[kind]
  ids = tokenizer.encode(text)
  assert ids.dtype == np.int32 and ids.ndim == 1
  assert np.all((ids >= 0) & (ids < tokenizer.vocab_size) & (ids != tokenizer.eos_id))
  assert tokenizer.encode('').size == 0


@pytest.mark.parametrize('kind', LOSSLESS + LOSSY)
def test_decoding_drops_the_end_of_document_and_ids_beyond_the_vocabulary(trained, kind):
  tokenizer = trained[kind]
  ids = tokenizer.encode('the class')
  around = [tokenizer.eos_id, *ids, tokenizer.vocab_size, tokenizer.vocab_size + 63, tokenizer.eos_id]
  assert tokenizer.decode(around) == tokenizer.decode(ids) == 'the class'
  assert tokenizer.decode([]) == ''


@pytest.mark.parametrize('kind', LOSSLESS + LOSSY)
def test_half_a_surrogate_pair_is_refused(trained, kind):
  with pytest.raises(UnicodeEncodeError):
    trained[kind].encode('a\ud800b')


@pytest.mark.parametrize('kind', ['sentencepiece-bpe', 'sentencepiece-unigram', 'byte-bpe', 'wordpiece'])
def test_subwords_compress(trained, documents, kind):
  text = documents[0].text
  assert len(trained[kind].encode(text)) < len(text) / 2


@pytest.mark.parametrize('kind', ['sentencepiece-bpe', 'sentencepiece-unigram'])
def test_runs_of_spaces_are_pieces(trained, kind):
  assert len(trained[kind].encode('        ')) <= 2


def test_characters_are_lossless_where_they_are_known():
  tokenizer = characters.train(['banana\n', '😀'], 100, 'none')
  assert tokenizer.vocab_size == 2 + 5
  assert tokenizer.decode(tokenizer.encode('nab\n😀')) == 'nab\n😀'
  assert tokenizer.encode('x').tolist() == [tokenizer.unk_id]
  assert tokenizer.decode(tokenizer.encode('axb')) == 'a\ufffdb'


def test_the_most_frequent_characters_and_words_are_kept():
  assert json.loads(characters.train(['aaabbc'], 4, 'none').model) == ['a', 'b']
  assert json.loads(words.train(['b b b c c a a d'], 5, 'none').model) == ['b', 'a', 'c']


def test_words_lose_unknown_words_and_spacing():
  tokenizer = words.train(['the cat, the dog\nthe end'], 100, 'none')
  assert tokenizer.decode(tokenizer.encode('the   bird, the cat\nend')) == 'the \ufffd , the cat\nend'


def byte_level_alphabet():
  """The characters by which GPT-2 writes bytes: printable ones for themselves, the others from U+0100 on."""
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  others = iter(range(256, 512))
  return {byte: chr(byte if byte in printable else next(others)) for byte in range(256)}


def merged(symbols, rank):
  """Byte pair encoding as defined: the best pair of neighbours is joined, the leftmost first, until none is known."""
  symbols = list(symbols)
  while known := [(rank[pair], i) for i, pair in enumerate(itertools.pairwise(symbols)) if pair in rank]:
    _, i = min(known)
    symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
  return symbols


def test_byte_bpe_equals_merging_by_hand(trained, documents):
  model = json.loads(trained['byte-bpe'].model)['model']
  rank = {tuple(pair): i for i, pair in enumerate(model['merges'])}
  alphabet = byte_level_alphabet()
  split = re.compile(r"'(?:[sdmt]|ll|ve|re)| ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+")
  text = documents[5].text[:3000] + ' naïve 😀'
  expected = [symbol for word in split.findall(text) for symbol in merged([alphabet[b] for b in word.encode()], rank)]
  assert trained['byte-bpe'].encode(text).tolist() == [model['vocab'][symbol] for symbol in expected]


def test_sentencepiece_bpe_equals_merging_by_hand(trained, documents):
  tokenizer = trained['sentencepiece-bpe']
  processor = tokenizer._processor
  score = {processor.id_to_piece(i): processor.get_score(i) for i in range(258, tokenizer.vocab_size)}

  class Rank(dict):
    def __contains__(self, pair):
      return ''.join(pair) in score

    def __getitem__(self, pair):
      return -score[''.join(pair)]

  text = documents[5].text[:600]
  expected = [processor.piece_to_id(piece) for piece in merged(text.replace(' ', '\u2581'), Rank())]
  assert tokenizer.encode(text).tolist() == expected


def test_wordpiece_equals_longest_match_by_hand(trained, documents):
  tokenizer = trained['wordpiece']
  vocabulary = json.loads(tokenizer.model)['model']['vocab']

  def pieces(word):
    out, start = [], 0
    while start < len(word):
      fits = [end for end in range(len(word), start, -1) if '##' * (start > 0) + word[start:end] in vocabulary]
      if not fits:
        return ['[UNK]']
      out.append('##' * (start > 0) + word[start : fits[0]])
      start = fits[0]
    return out

  text = documents[5].text[:3000] + ' unknown: ж'
  expected = [vocabulary[piece] for word in re.findall(r'[^\W_]+|[^\w\s]|_', text) for piece in pieces(word)]
  assert tokenizer.encode(text).tolist() == expected
  assert expected[-1] == vocabulary['[UNK]']


@pytest.mark.parametrize('kind', LOSSLESS + LOSSY)
def test_normalization_is_applied_before_encoding(trained, kind):
  raw = 'Cafe\u0301 ﬁle Å'
  for name, expected in {
    'nfc': unicodedata.normalize('NFC', raw),
    'nfkc': 'Café file Å',
    'nfkc-lowercase': 'café file å',
  }.items():
    tokenizer = type(trained[kind])(name, trained[kind].model)
    assert tokenizer.encode(raw).tolist() == trained[kind].encode(expected).tolist()
    assert not tokenizer.lossless
    assert tokenizer.fingerprint != trained[kind].fingerprint


def test_unknown_normalization_is_refused():
  with pytest.raises(ValueError, match=r"'nfd'.*none, nfc, nfkc, nfkc-lowercase"):
    characters.train(['a'], 10, 'nfd')


@pytest.mark.parametrize('kind', LOSSLESS + LOSSY)
def test_saved_and_pickled_tokenizers_are_the_same(trained, kind, tmp_path):
  tokenizer = trained[kind]
  tokenizers.save(tokenizer, tmp_path / 'tokenizer')
  for copy in (tokenizers.load(tmp_path / 'tokenizer'), pickle.loads(pickle.dumps(tokenizer))):
    assert copy == tokenizer
    assert copy.fingerprint == tokenizer.fingerprint
    assert copy.encode('the naïve class').tolist() == tokenizer.encode('the naïve class').tolist()


def test_fingerprints_differ(trained):
  assert len({tokenizer.fingerprint for tokenizer in trained.values()}) == len(trained)


def test_damaged_and_missing_tokenizers_are_refused(trained, tmp_path):
  with pytest.raises(FileNotFoundError, match='holds no tokenizer'):
    tokenizers.load(tmp_path)
  tokenizers.save(trained['characters'], tmp_path / 'tokenizer')
  file = tmp_path / 'tokenizer' / 'characters.json'
  file.write_text(file.read_text().replace('"a"', '"b"'))
  with pytest.raises(ValueError, match='fingerprint differs'):
    tokenizers.load(tmp_path / 'tokenizer')
  file.unlink()
  with pytest.raises(ValueError, match='no readable tokenizer'):
    tokenizers.load(tmp_path / 'tokenizer')


TRAIN_SUBWORDS = {
  'sentencepiece-bpe': functools.partial(sentencepieces.train, 'bpe'),
  'sentencepiece-unigram': functools.partial(sentencepieces.train, 'unigram'),
  'wordpiece': hugging_face.train_wordpiece,
  'byte-bpe': hugging_face.train_byte_bpe,
}


@pytest.mark.parametrize('kind', TRAIN_SUBWORDS)
def test_a_tiny_corpus_gives_a_smaller_vocabulary_silently(kind, capfd):
  tokenizer = TRAIN_SUBWORDS[kind](['hello world', 'a'], 4096, 'none')
  assert tokenizer.vocab_size < 400
  assert tokenizer.decode(tokenizer.encode('hello world')) == 'hello world'
  assert capfd.readouterr() == ('', '')


@pytest.mark.parametrize('kind', TRAIN_SUBWORDS)
def test_a_vocabulary_too_small_is_told_how_large_it_must_be(kind):
  texts = ['hello world']
  with pytest.raises(ValueError, match='data.vocab_size is 3; .* needs at least') as error:
    TRAIN_SUBWORDS[kind](texts, 3, 'none')
  needed = int(re.search(r'at least (\d+)', str(error.value))[1])
  assert TRAIN_SUBWORDS[kind](texts, needed, 'none').vocab_size <= needed


@given(ids=st.lists(st.integers(0, 256)))
def test_bytes_that_are_no_text_decode_to_replacement_characters(trained, ids):
  expected = bytes(i for i in ids if i < 256).decode(errors='replace')
  assert trained['bytes'].decode(ids) == expected
  assert base.REPLACEMENT in trained['bytes'].decode([0xFF])
