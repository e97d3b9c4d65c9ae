import hypothesis
import pytest
from hypothesis import strategies as st

from data import documents
from data.documents import Counts, Document


def _documents(texts):
  return [Document(text, f'file{i}') for i, text in enumerate(texts)]


def _clean(text):
  counts = Counts()
  return [document.text for document in documents.clean([Document(text, 'a.txt')], counts)], counts


@pytest.mark.parametrize(
  'content, message',
  [
    (b'one\ntwo\nthr\xffe', r'a\.txt: invalid UTF-8 \(0xff\) at line 3, byte 11'),
    (b'one\ntw\0o', r'a\.txt: a NUL byte at line 2, byte 6'),
    ('grün'.encode('utf-16'), r'a\.txt: invalid UTF-8 .* line 1, byte 0; .*iconv'),
  ],
)
def test_bad_bytes_are_told_with_file_line_and_byte(content, message):
  with pytest.raises(ValueError, match=message):
    documents.decode(content, 'a.txt')


def test_byte_order_mark_is_no_text():
  assert documents.decode(b'\xef\xbb\xbfabc', 'a.txt') == 'abc'


def test_crlf_becomes_lf_and_is_counted():
  texts, counts = _clean('a\r\nb\r\n\rc')
  assert texts == ['a\nb\n\rc']
  assert counts['crlf_lines'] == 2


@pytest.mark.parametrize('text', ['', ' \n\t\r\n'])
def test_empty_documents_are_dropped_and_counted(text):
  texts, counts = _clean(text)
  assert texts == []
  assert counts['empty_documents'] == 1


@pytest.mark.parametrize('text, message', [('a\0b', 'a.txt: a NUL character'), ('a\ud800b', 'a.txt: .*surrogate')])
def test_characters_that_no_file_can_hold_are_told(text, message):
  with pytest.raises(ValueError, match=message):
    _clean(text)


def test_duplicates_are_dropped_and_counted_across_calls():
  seen, counts = set(), Counts()
  first = list(documents.unique(_documents(['a', 'b', 'a']), seen, counts))
  second = list(documents.unique(_documents(['b', 'c', 'a ']), seen, counts))
  assert [document.text for document in first + second] == ['a', 'b', 'c', 'a ']
  assert counts['duplicates'] == 2


def test_blank_line_blocks_know_their_lines():
  blocks = documents.blank_line_blocks(Document('\n\n  one\ntwo\n \t\nthree\n\n\n\nfour\n', 'a.txt'))
  assert [(block.text, block.source) for block in blocks] == [
    ('  one\ntwo', 'a.txt:3'),
    ('three', 'a.txt:6'),
    ('four', 'a.txt:10'),
  ]


@hypothesis.given(st.text(alphabet='ab \t\n', max_size=60))
def test_blank_line_blocks_keep_every_line_that_is_not_blank(text):
  blocks = list(documents.blank_line_blocks(Document(text, 'a.txt')))
  lines = [line for block in blocks for line in block.text.split('\n')]
  assert lines == [line for line in text.split('\n') if line.strip()]
  for block in blocks:
    assert text.split('\n')[int(block.source.split(':')[1]) - 1] == block.text.split('\n')[0]


def test_a_line_of_a_megabyte_is_one_document():
  text = 'x' * 2**20
  assert _clean(documents.decode(text.encode(), 'a.txt'))[0] == [text]
  assert [block.text for block in documents.blank_line_blocks(Document(text, 'a.txt'))] == [text]


@hypothesis.given(st.sets(st.text(max_size=5), min_size=2, max_size=50), st.floats(0.01, 0.99))
def test_split_gives_each_document_to_one_side(texts, fraction):
  train, validation = documents.split(_documents(texts), fraction)
  assert train and validation
  assert sorted(document.text for document in train + validation) == sorted(texts)


def test_split_follows_content_and_not_company():
  texts = [f'document {i}' for i in range(2000)]
  train, validation = documents.split(_documents(texts), 0.1)
  assert 150 < len(validation) < 250
  held_out = {document.text for document in validation}
  some = texts[500:]
  held_out_of_some = {document.text for document in documents.split(_documents(some), 0.1)[1]}
  assert held_out_of_some == held_out & set(some)
  assert held_out < {document.text for document in documents.split(_documents(texts), 0.2)[1]}


def test_split_without_validation_and_with_too_little():
  one = _documents(['a'])
  assert documents.split(one, 0.0) == (one, [])
  with pytest.raises(ValueError, match=r'1 document.*blank-line.*validation_fraction=0'):
    documents.split(one, 0.05)
