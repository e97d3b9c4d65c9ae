import dataclasses
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest

from data import store
from data.documents import Document
from data.tokenizers import bytes as bytes_tokenizer
from data.tokenizers import sentencepieces, words

TEXTS = ['naïve 😀', '', 'one\ntwo\n', 'a' * 5000] * 40
DOCUMENTS = [Document(f'{text}{i}' if text else '', f'file:{i}') for i, text in enumerate(TEXTS)]
BYTES = bytes_tokenizer.BytesTokenizer()


def assert_holds(found, documents, tokenizer):
  assert found.num_documents == len(documents)
  assert found.offsets.dtype == found.num_bytes.dtype == np.int64
  assert found.offsets[0] == 0 and found.offsets[-1] == len(found.tokens)
  assert found.num_bytes.tolist() == [len(document.text.encode()) for document in documents]
  for i, document in enumerate(documents):
    assert found[i].tolist() == tokenizer.encode(document.text).tolist()


def test_one_and_two_processes_write_the_same(tmp_path, monkeypatch):
  tokenizer = sentencepieces.train('bpe', TEXTS, 300, 'none')
  monkeypatch.setattr(store, '_CHUNK_BYTES', 10_000)
  one = store.encode(DOCUMENTS, tokenizer, tmp_path / 'one', 1)
  monkeypatch.setattr(store, '_ONE_PROCESS_BYTES', 0)
  two = store.encode(DOCUMENTS, tokenizer, tmp_path / 'two', 2)
  assert_holds(one, DOCUMENTS, tokenizer)
  assert_holds(two, DOCUMENTS, tokenizer)
  contents = [
    {path.relative_to(root): path.read_bytes() for path in root.rglob('*') if path.is_file()}
    for root in (tmp_path / 'one', tmp_path / 'two')
  ]
  assert contents[0] == contents[1]


@dataclasses.dataclass(frozen=True)
class Counting:
  """Bytes, noting what it is asked to encode."""

  calls: list
  vocab_size: int = 257
  fingerprint: str = 'counting'

  def encode(self, text):
    self.calls.append(text)
    return BYTES.encode(text)


def test_an_unchanged_store_is_reused(tmp_path):
  tokenizer = Counting([])
  store.encode(DOCUMENTS, tokenizer, tmp_path, 1)
  assert tokenizer.calls == [document.text for document in DOCUMENTS]
  again = store.encode(DOCUMENTS, tokenizer, tmp_path, 1)
  assert len(tokenizer.calls) == len(DOCUMENTS)
  assert_holds(again, DOCUMENTS, BYTES)
  assert isinstance(again.tokens, np.memmap) and not again.tokens.flags.writeable


def test_other_documents_or_tokenizers_get_their_own(tmp_path):
  stores = [
    store.encode(DOCUMENTS, BYTES, tmp_path, 1),
    store.encode(DOCUMENTS[1:], BYTES, tmp_path, 1),
    store.encode(DOCUMENTS[::-1], BYTES, tmp_path, 1),
    store.encode(DOCUMENTS, bytes_tokenizer.BytesTokenizer('nfc'), tmp_path, 1),
  ]
  assert len({found.fingerprint for found in stores}) == 4
  assert_holds(stores[1], DOCUMENTS[1:], BYTES)
  joined, apart = [Document('ab', ''), Document('c', '')], [Document('a', ''), Document('bc', '')]
  assert store.encode(joined, BYTES, tmp_path, 1).fingerprint != store.encode(apart, BYTES, tmp_path, 1).fingerprint


@pytest.mark.parametrize('name', ['tokens.bin', 'offsets.npy', 'store.json'])
def test_a_truncated_store_is_written_again_and_said_so(tmp_path, name, caplog):
  store.encode(DOCUMENTS, BYTES, tmp_path, 1)
  (file,) = pathlib.Path(tmp_path).rglob(name)
  content = file.read_bytes()
  file.write_bytes(content[: len(content) // 2])
  assert_holds(store.encode(DOCUMENTS, BYTES, tmp_path, 1), DOCUMENTS, BYTES)
  assert 'is written again' in caplog.text and str(file.parent) in caplog.text
  assert file.read_bytes() == content


def test_a_failed_encoding_leaves_nothing(tmp_path):
  class Failing(Counting):
    def encode(self, text):
      if self.calls:
        raise RuntimeError('out of memory')
      return super().encode(text)

  with pytest.raises(RuntimeError, match='out of memory'):
    store.encode(DOCUMENTS, Failing([]), tmp_path, 1)
  assert not [path for path in tmp_path.iterdir() if path.suffix != '.lock']


@pytest.mark.parametrize('vocab_size, dtype', [(257, np.uint16), (1 << 16, np.uint16), ((1 << 16) + 1, np.uint32)])
def test_tokens_are_as_wide_as_the_vocabulary_needs(tmp_path, vocab_size, dtype):
  class Largest(Counting):
    def encode(self, text):
      return np.full(3, self.vocab_size - 1, np.int32)

  found = store.encode([Document('abc', '')], Largest([], vocab_size), tmp_path, 1)
  assert found.tokens.dtype == dtype
  assert found.tokens.tolist() == [vocab_size - 1] * 3


def test_no_documents_and_no_tokens(tmp_path):
  assert_holds(store.encode([], BYTES, tmp_path, 0), [], BYTES)
  tokenizer = words.train(['a'], 10, 'none')
  assert_holds(store.encode([Document(' ', '')], tokenizer, tmp_path, 0), [Document(' ', '')], tokenizer)


def test_progress_counts_bytes(tmp_path, monkeypatch):
  monkeypatch.setattr(store, '_CHUNK_BYTES', 50_000)
  total = sum(len(document.text.encode()) for document in DOCUMENTS)
  calls = []
  store.encode(DOCUMENTS, BYTES, tmp_path, 1, lambda *progress: calls.append(progress))
  assert len(calls) > 2
  assert [done for done, _ in calls] == sorted({done for done, _ in calls})
  assert calls[-1] == (total, total)


def test_a_lone_surrogate_is_refused_with_its_source(tmp_path):
  with pytest.raises(ValueError, match=r'notes.jsonl:7 holds a lone surrogate at character 2'):
    store.encode([Document('ab\ud800', 'notes.jsonl:7')], BYTES, tmp_path, 1)


ENDLESS = """
import sys, types
from data import store
from data.tokenizers import bytes as bytes_tokenizer
class Slow(bytes_tokenizer.BytesTokenizer):
  def encode(self, text):
    import time
    time.sleep(600)
if __name__ == '__main__':
  store._ONE_PROCESS_BYTES = 0
  documents = [types.SimpleNamespace(text='a' * 300_000, source='')] * 4
  store.encode(documents, Slow(), sys.argv[1], 2)
"""


@pytest.mark.slow
def test_processes_end_when_their_parent_is_killed(tmp_path):
  (tmp_path / 'endless.py').write_text(ENDLESS)
  parent = subprocess.Popen(
    [sys.executable, str(tmp_path / 'endless.py'), str(tmp_path / 'stores')],
    env=os.environ | {'PYTHONPATH': str(pathlib.Path(store.__file__).parents[1])},
  )
  listing = pathlib.Path(f'/proc/{parent.pid}/task/{parent.pid}/children')
  wait(lambda: len(listing.read_text().split()) == 3)  # two workers and the tracker of multiprocessing's resources
  children = [pathlib.Path('/proc', child) for child in listing.read_text().split()]
  time.sleep(2)  # until the workers are at work
  parent.kill()
  parent.wait()
  wait(lambda: not any(child.exists() for child in children))


def wait(condition):
  end = time.monotonic() + 30
  while not condition():
    assert time.monotonic() < end
    time.sleep(0.1)
