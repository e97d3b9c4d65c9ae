"""Special tokens: reserved at the end of a vocabulary, told by a file, and what the others are in a text."""

import hashlib
import json
import pickle
import re

import numpy as np
import pytest
import tokenizers as library
from hypothesis import given
from hypothesis import strategies as st

from data import tokenizers
from data.tokenizers import bytes as bytes_tokenizer
from data.tokenizers import special, training

KINDS = ('bytes', *training.TRAINERS)
NAMES = ('[MASK]', '[R]', '<extra_id_1>', '<extra_id_0>')
TEXT = 'the class, [MASK] and <extra_id_0> of the class.'


@pytest.mark.parametrize('kind', KINDS)
def test_reserved_tokens_come_last_and_change_nothing_else(trained, kind, tmp_path):
  plain = trained[kind]
  tokenizer = plain.reserving(NAMES)
  size = plain.vocab_size
  assert tokenizer.vocab_size == size + 4
  found = tokenizer.special
  assert (found.mask_id, found.mode_ids, found.sentinel_ids) == (size, {'R': size + 1}, (size + 3, size + 2))
  assert found.opening_id == found.eos_id == found.start_id == plain.eos_id
  assert plain.special.mask_id is None and not plain.special.sentinel_ids
  np.testing.assert_array_equal(found.ordinary_ids, plain.special.ordinary_ids)
  assert not found.ordinary[[*range(size, size + 4), plain.eos_id]].any()
  # A name in a text is text.
  assert tokenizer.encode(TEXT).tolist() == plain.encode(TEXT).tolist()
  ids = plain.encode(TEXT)
  assert tokenizer.decode([size, *ids, size + 3, plain.eos_id]) == plain.decode(ids)
  assert tokenizer.lossless == plain.lossless and tokenizer.fingerprint != plain.fingerprint
  assert tokenizer.reserving(NAMES[:2]) is tokenizer
  tokenizers.save(tokenizer, tmp_path / 'tokenizer')
  for copy in (tokenizers.load(tmp_path / 'tokenizer'), pickle.loads(pickle.dumps(tokenizer))):
    assert copy == tokenizer and copy.special.mask_id == size
  assert plain.fingerprint == hashlib.sha256(f'{plain.format}\nnone\n'.encode() + plain.model).hexdigest()


def test_bytes_without_reserved_tokens_are_what_they_were():
  assert bytes_tokenizer.BytesTokenizer().model == b'' and bytes_tokenizer.BytesTokenizer().vocab_size == 257


def test_a_trained_vocabulary_holds_its_reserved_tokens(data_config, documents):
  data_config.tokenizer = 'byte-bpe'
  plain = tokenizers.train(data_config, documents)
  tokenizer = tokenizers.train(data_config, documents, NAMES)
  assert tokenizer.vocab_size == plain.vocab_size == 700
  assert tokenizer.special.sentinel_ids == (699, 698)
  data_config.vocab_size = 259
  with pytest.raises(ValueError, match='at least 257.*of data.vocab_size=259, 4 are reserved'):
    tokenizers.train(data_config, documents, NAMES)
  data_config.vocab_size = 4
  with pytest.raises(ValueError, match=r'data.vocab_size is 4, but 4 tokens are reserved, \[MASK\] to <extra_id_0>'):
    tokenizers.train(data_config, documents, NAMES)


@pytest.mark.parametrize('kind', KINDS)
def test_the_pieces_of_a_text_are_the_text(trained, kind):
  tokenizer, text = trained[kind], 'the class of self'
  written = b''.join(tokenizer.pieces[i] for i in tokenizer.encode(text)).decode()
  assert written.removeprefix(' ') == text


@pytest.mark.parametrize('kind', ['bytes', 'sentencepiece-bpe', 'byte-bpe', 'characters'])
@given(
  words=st.lists(st.sampled_from(['the', ' class', ' value', '.', ', ', 'x_1', "('", ' é', '漢字', '  ']), max_size=12)
)
def test_words_begin_where_they_do_in_the_text(trained, kind, words):
  """Of the words by a regular expression, each begins with a token that is said to begin one, and no token is amid."""
  text, found = ''.join(words).strip(), trained[kind].special
  ids = trained[kind].encode(text)
  if kind == 'characters' and (ids == 1).any():
    return
  ends = np.cumsum([len(trained[kind].pieces[i]) for i in ids])
  starts = np.flatnonzero(
    [i == 0 or found.opens_word[ids[i]] or found.closes_word[ids[i - 1]] for i in range(len(ids))]
  )
  begins = {0, *(int(ends[i - 1]) for i in starts if i)} if len(ids) else set()
  inside = set()
  for word in re.finditer(r'[^\W\u2e80-\u9fff]+|[\u2e80-\u9fff]', text):
    first, last = (len(text[:at].encode()) for at in word.span())
    inside |= set(range(first + 1, last))
  assert not begins & inside
  if kind == 'characters':
    assert begins >= {len(text[: word.start()].encode()) for word in re.finditer(r'[^\W\u2e80-\u9fff]+', text)}


@pytest.mark.parametrize(
  'names, mask_id, opening_id, start_id, sentinels',
  [
    (['[UNK]', '[CLS]', '[SEP]', '[MASK]'], 3, 1, 2, ()),
    (['<s>', '<pad>', '</s>', '<unk>', '<mask>'], 4, 0, 2, ()),
    (['<pad>', '</s>', '<unk>', '<extra_id_1>', '<extra_id_0>'], None, 1, 0, (4, 3)),
  ],
  ids=['bert', 'bart', 't5'],
)
def test_a_file_tells_its_special_tokens(tmp_path, names, mask_id, opening_id, start_id, sentinels):
  vocabulary = {name: i for i, name in enumerate([*names, 'a', 'b'])}
  tokenizer = library.Tokenizer(
    library.models.WordLevel(vocabulary, unk_token=next(n for n in names if 'unk' in n.lower()))
  )
  tokenizer.add_special_tokens(names)
  tokenizer.save(str(tmp_path / 'tokenizer.json'))
  found = training.load_file(str(tmp_path / 'tokenizer.json'), 'none').special
  assert (found.mask_id, found.opening_id, found.start_id, found.sentinel_ids) == (
    mask_id,
    opening_id,
    start_id,
    sentinels,
  )
  assert found.ordinary.sum() == 2


def test_sentences_end_with_a_full_stop(trained):
  found = trained['byte-bpe'].special
  vocabulary = json.loads(trained['byte-bpe'].model)['model']['vocab']
  assert [name for name in ('.', '!', '?', 'a', ',') if found.ends_sentence[vocabulary[name]]] == ['.', '!', '?']
  assert special.sentinel_name(3) == '<extra_id_3>'
