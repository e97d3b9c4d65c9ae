"""Token stores: documents encoded once, over processes, into a file that is mapped into memory."""

import concurrent.futures
import dataclasses
import hashlib
import json
import logging
import multiprocessing
import os
import pathlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from data import cache
from data.tokenizers import base

_CHUNK_BYTES = 1 << 18  # text that a process encodes at a time
_ONE_PROCESS_BYTES = 4 << 20  # less text than this is encoded (3 to 20 MB/s) before processes have started (1 to 2 s)

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TokenStore:
  """The tokens of documents, one after the other, without special tokens.

  Attributes:
    tokens: uint16 or uint32 [num_tokens], mapped from disk.
    offsets: int64 [num_documents + 1]; document i is tokens[offsets[i]:offsets[i + 1]].
    num_bytes: int64 [num_documents], bytes of the original texts as UTF-8.
    fingerprint: hash of the documents and the tokenizer.
  """

  tokens: np.ndarray
  offsets: np.ndarray
  num_bytes: np.ndarray
  fingerprint: str

  @property
  def num_documents(self) -> int:
    return len(self.num_bytes)

  def __getitem__(self, index: int) -> np.ndarray:
    return self.tokens[self.offsets[index] : self.offsets[index + 1]]


def encode(
  documents: Sequence,
  tokenizer: base.Tokenizer,
  directory: str | pathlib.Path,
  num_workers: int,
  progress: Callable[[int, int], None] | None = None,
) -> TokenStore:
  """Returns the token store of `documents`, from `directory` if it was written there before.

  Args:
    documents: objects with a `text` and a `source`.
    tokenizer: what encodes them; it is sent to other processes.
    directory: folder of stores; each lies in a subfolder named after a hash of its documents and tokenizer.
    num_workers: processes; 0 = one for each core this process may use.
    progress: called with (bytes done, bytes of all documents) as the work goes on.

  Raises:
    ValueError: a text holds a lone surrogate; the message names its source.
  """
  num_bytes, fingerprint = _measure(documents, tokenizer)
  path = pathlib.Path(directory) / fingerprint[:32]
  with cache.one_at_a_time(path):
    if not (path.exists() and _is_whole(path)):
      _write(path, [document.text for document in documents], num_bytes, tokenizer, num_workers, progress)
    elif progress:
      progress(int(num_bytes.sum()), int(num_bytes.sum()))
  return _open(path)


def _measure(documents, tokenizer):
  """UTF-8 sizes of the documents, and the hash of their texts and of the tokenizer."""
  num_bytes = np.zeros(len(documents), np.int64)
  digest = hashlib.sha256(tokenizer.fingerprint.encode())
  for i, document in enumerate(documents):
    try:
      data = document.text.encode()
    except UnicodeEncodeError as error:
      raise ValueError(
        f'{document.source} holds a lone surrogate at character {error.start}, which is no valid '
        'Unicode text; write the file again as UTF-8'
      ) from error
    num_bytes[i] = len(data)
    digest.update(len(data).to_bytes(8, 'little'))
    digest.update(data)
  return num_bytes, digest.hexdigest()


def _write(path, texts, num_bytes, tokenizer, num_workers, progress):
  dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
  total, done = int(num_bytes.sum()), 0
  lengths = []
  with cache.new_directory(path) as unfinished:
    with open(unfinished / 'tokens.bin', 'wb') as file:
      for tokens, chunk_lengths in _encoded_chunks(texts, num_bytes, tokenizer, num_workers):
        file.write(tokens.astype(dtype).data)
        done += int(num_bytes[len(lengths) : len(lengths) + len(chunk_lengths)].sum())
        lengths.extend(chunk_lengths)
        if progress:
          progress(done, total)
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
    np.save(unfinished / 'offsets.npy', offsets)
    np.save(unfinished / 'num_bytes.npy', num_bytes)
    sizes = {name: (unfinished / name).stat().st_size for name in ('tokens.bin', 'offsets.npy', 'num_bytes.npy')}
    description = {'dtype': np.dtype(dtype).name, 'num_tokens': int(offsets[-1]), 'sizes': sizes}
    (unfinished / 'store.json').write_text(json.dumps(description, indent=2) + '\n')


def _encoded_chunks(texts, num_bytes, tokenizer, num_workers) -> Iterator[tuple[np.ndarray, list[int]]]:
  chunks = list(_chunks(texts, num_bytes))
  num_workers = min(num_workers or len(os.sched_getaffinity(0)), len(chunks))
  if num_workers <= 1 or num_bytes.sum() < _ONE_PROCESS_BYTES:
    for chunk in chunks:
      yield _encode_chunk(tokenizer, chunk)
    return
  # Not fork: the parent may hold the threads of jax, whose locks a forked child would wait for.
  context = multiprocessing.get_context('spawn')
  with concurrent.futures.ProcessPoolExecutor(num_workers, context, _start_worker, (tokenizer,)) as pool:
    yield from pool.map(_work, chunks)


def _chunks(texts, num_bytes):
  start, size = 0, 0
  for i, n in enumerate(num_bytes):
    size += int(n)
    if size >= _CHUNK_BYTES:
      yield texts[start : i + 1]
      start, size = i + 1, 0
  if start < len(texts):
    yield texts[start:]


def _encode_chunk(tokenizer, texts):
  ids = [tokenizer.encode(text) for text in texts]
  return np.concatenate(ids), [len(x) for x in ids]


def _start_worker(tokenizer):
  global _worker_tokenizer
  _worker_tokenizer = tokenizer
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
  threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent():
  multiprocessing.parent_process().join()
  os._exit(1)  # the parent was killed, and nobody else would end this process


def _work(texts):
  return _encode_chunk(_worker_tokenizer, texts)


def _is_whole(path):
  try:
    sizes = json.loads((path / 'store.json').read_text())['sizes']
    for name, size in sizes.items():
      found = (path / name).stat().st_size
      if found != size:
        raise ValueError(f'{name} has {found} bytes, not {size}')
  except (OSError, ValueError, KeyError) as error:
    _log.warning('the token store %s is damaged (%s); it is written again', path, error)
    return False
  return True


def _open(path):
  description = json.loads((path / 'store.json').read_text())
  shape, dtype = (description['num_tokens'],), np.dtype(description['dtype'])
  # An empty file cannot be mapped.
  tokens = np.memmap(path / 'tokens.bin', dtype, 'r', shape=shape) if shape[0] else np.zeros(shape, dtype)
  return TokenStore(tokens, np.load(path / 'offsets.npy'), np.load(path / 'num_bytes.npy'), path.name)
