import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import tokenizers
from data.tokenizers import training

KINDS = ('bytes', *training.TRAINERS)


def stream(tokenizer, ids, context=()):
  decoder = tokenizers.StreamDecoder(tokenizer, context)
  return [*(decoder.push(i) for i in ids), decoder.finish()]


@pytest.mark.parametrize('kind', KINDS)
@given(data=st.data())
def test_pushes_joined_are_the_text(trained, kind, data):
  tokenizer = trained[kind]
  ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=30))
  assert ''.join(stream(tokenizer, ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize('kind', KINDS)
@given(data=st.data())
def test_a_context_is_not_repeated(trained, kind, data):
  tokenizer = trained[kind]
  context = tokenizer.encode(data.draw(st.sampled_from(['the class', 'a\n', 'x ', '', 'def f(x):'])))
  ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=10))
  assert tokenizer.decode(context) + ''.join(stream(tokenizer, ids, context)) == tokenizer.decode([*context, *ids])


@pytest.mark.parametrize('kind', ['bytes', 'byte-bpe', 'sentencepiece-bpe'])
def test_a_character_appears_whole_with_its_last_byte(trained, kind):
  ids = trained[kind].encode('😀b')
  assert len(ids) == 5
  assert stream(trained[kind], ids) == ['', '', '', '😀', 'b', '']


def test_an_unfinished_character_appears_at_the_end(trained):
  assert stream(trained['bytes'], '😀'.encode()[:2]) == ['', '', '\ufffd']


def test_text_comes_at_once(trained):
  ids = trained['sentencepiece-bpe'].encode('the value of the class')
  assert all(stream(trained['sentencepiece-bpe'], ids)[:-1])
