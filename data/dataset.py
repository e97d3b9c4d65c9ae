"""From a config to the tokens of a train and a validation split."""

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Self

import numpy as np

from data import augmentation, cache, corpora, documents, packing, store, tokenizers
from data.documents import Counts, Document


@dataclasses.dataclass(frozen=True)
class Split:
  """Tokens of documents, seen as the stream that rows are cut from.

  Attributes:
    store: their tokens, without special tokens.
    eos_id: the token around documents.
    source: of pairs, whose targets these documents are, the sources; else None.
  """

  store: store.TokenStore
  eos_id: int
  source: Self | None = None

  @property
  def num_documents(self) -> int:
    return len(self.store.num_bytes)

  @functools.cached_property
  def num_bytes(self) -> int:
    """UTF-8 bytes of the original documents."""
    return int(self.store.num_bytes.sum())

  @property
  def num_tokens(self) -> int:
    return len(self.store.tokens)

  @property
  def num_targets(self) -> int:
    """Tokens predicted in one pass: those of the documents and an EOS each."""
    return self.num_tokens + self.num_documents

  @property
  def bytes_per_target(self) -> float:
    return self.num_bytes / max(1, self.num_targets)

  @functools.cached_property
  def boundaries(self) -> np.ndarray:
    """int64 [num_documents + 1], positions of EOS in the stream."""
    return self.store.offsets + np.arange(len(self.store.offsets))

  def stream(self, positions: np.ndarray) -> np.ndarray:
    """The int32 tokens at int64 `positions` [n] of the stream `EOS d1 EOS d2 EOS ... dn EOS`."""
    passed = np.searchsorted(self.boundaries, positions, side='right')  # EOS at or before each position
    tokens = np.full(len(positions), self.eos_id, np.int32)
    inside = self.boundaries[passed - 1] != positions
    tokens[inside] = self.store.tokens[(positions - passed)[inside]]
    return tokens

  def pack(
    self, row_length: int, kind: str, target_length: int, seed: int = 0, documents: slice | None = None
  ) -> packing.Rows:
    """Its rows, or those of some consecutive `documents`; of pairs with sources of `row_length`, see `data.packing`."""
    if self.source is not None:
      return packing.pack_pairs(self.source.boundaries, self.boundaries, row_length, target_length or row_length, seed)
    documents = documents or slice(0, self.num_documents)
    return packing.pack(self.boundaries[documents.start : documents.stop + 1], row_length, kind, seed)


@dataclasses.dataclass(frozen=True)
class Dataset:
  """What a run trains on.

  Attributes:
    tokenizer: trained on the train split or loaded.
    train: all training documents, those of a mixture's components one after the other.
    validation: the documents held out.
    rows: of each component, one pass over its training documents.
    weights: share of the tokens delivered in training for each component, summing to 1.
    fingerprint: hash of everything that decides the batches.
    report: what was read, dropped and packed, for a summary.
  """

  tokenizer: tokenizers.Tokenizer
  train: Split
  validation: Split
  rows: tuple[packing.Rows, ...]
  weights: tuple[float, ...]
  fingerprint: str
  report: dict[str, int | float]

  @property
  def num_rows(self) -> int:
    """Rows of one pass over every component: an epoch."""
    return sum(map(len, self.rows))


def prepare(
  data_config, row_length: int, seed: int, progress: Callable | None = None, reserved: Sequence[str] = ()
) -> Dataset:
  """Reads, cleans, splits, tokenizes and packs the corpus of a config.

  Args:
    data_config: the group `data` of a config.
    row_length: tokens of a row, see `objectives.row_length`.
    seed: of the packing, at least 0.
    progress: progress(description, total) opens a progress bar and returns advance(n).
    reserved: names of special tokens that a tokenizer trained here has, see `objectives.reserved`.

  Raises:
    ValueError, FileNotFoundError, ImportError: a setting, a file or a package is wrong or missing; what can be told
      without reading the corpus is told first.
  """
  if seed < 0:
    raise ValueError(f'the seed is {seed}; it must be at least 0')
  if not 0 <= data_config.validation_fraction < 1:
    raise ValueError(f'data.validation_fraction is {data_config.validation_fraction}; it must be from 0 to below 1')
  packing.check(row_length, data_config.packing)
  augmentation.check(data_config)
  found = corpora.find(data_config)
  counts = Counts()
  train, validation = _read_splits(found, data_config.validation_fraction, counts, progress)
  every_train = [document for part in train for document in part]
  names = dict.fromkeys([*augmentation.reserved(data_config.augmentation), *reserved])
  tokenizer = tokenizers.train(data_config, [*every_train, *_targets(every_train)], tuple(names))
  train_split = _encoded(every_train, tokenizer, data_config, progress, 'training')
  validation_split = _encoded(validation, tokenizer, data_config, progress, 'validation')
  ends = np.cumsum([0, *map(len, train)])
  rows = tuple(
    train_split.pack(row_length, data_config.packing, data_config.target_length, seed, slice(start, end))
    for start, end in zip(ends[:-1], ends[1:], strict=True)
  )
  if not any(map(len, rows)):
    raise ValueError(
      f'no pair of {_name(found[0])} fits into a row; raise data.sequence_length={data_config.sequence_length}'
      f' or data.target_length={data_config.target_length}'
    )
  total = sum(corpus.weight for corpus in found)
  weights = tuple(corpus.weight / total for corpus in found)
  decisive = (
    train_split.store.fingerprint,
    tokenizer.fingerprint,
    ends.tolist(),
    weights,
    row_length,
    data_config.packing,
    seed,
  )
  if train_split.source is not None:
    decisive += (train_split.source.store.fingerprint, data_config.target_length)
  return Dataset(
    tokenizer,
    train_split,
    validation_split,
    rows,
    weights,
    hashlib.sha256(repr(decisive).encode()).hexdigest(),
    _report(counts, train_split, validation_split, rows),
  )


def _targets(pairs: Sequence[Document]) -> list[Document]:
  """The targets of pairs as documents; none of documents that are no pairs."""
  return [Document(pair.target, pair.source) for pair in pairs if pair.target is not None]


def _encoded(read: Sequence[Document], tokenizer, data_config, progress, name: str) -> Split:
  """Documents, or pairs, as a split."""

  def encode(sides, what):
    bar = _byte_bar(progress, f'Encoding the {name} {what}')
    directory = cache.cache_dir(data_config) / 'stores'
    return store.encode(sides, tokenizer, directory, data_config.num_workers, bar)

  if data_config.corpus != 'pairs':
    return Split(encode(read, 'documents'), tokenizer.eos_id)
  source = Split(encode(read, 'sources'), tokenizer.eos_id)
  return Split(encode(_targets(read), 'targets'), tokenizer.eos_id, source)


def _read_splits(found: Sequence[corpora.Corpus], validation_fraction: float, counts: Counts, progress):
  """Training documents of each corpus, and the validation documents of all."""
  seen: set[bytes] = set()
  read: list[Document] = []
  ends = []
  for corpus in found:
    read += documents.unique(corpora.read(corpus, counts, progress), seen, counts)
    ends.append(len(read))
  if not read:
    raise ValueError(f'the corpus {_name(found[0])} has no text: {_skipped(counts)}')
  held_out, validation = documents.split(read, validation_fraction)[1], []
  out = {document.digest for document in held_out}
  train = []
  for corpus, start, end in zip(found, [0, *ends], ends, strict=False):
    train.append([document for document in read[start:end] if document.digest not in out])
    validation += [document for document in read[start:end] if document.digest in out]
    if not train[-1]:
      raise ValueError(
        f'no training document is left of {_name(corpus)}: {end - start} of its documents are not empty and not '
        f'duplicates of earlier ones, and all of those are held out for validation ({_skipped(counts)})'
      )
  return train, validation


def _name(corpus: corpora.Corpus) -> str:
  return f'{corpus.name} ({corpus.path})' if corpus.path else corpus.name


def _skipped(counts: Counts) -> str:
  names = ('empty_files', 'empty_documents', 'duplicates')
  return ', '.join(f'{counts[name]} {name.replace("_", " ")}' for name in names)


def _byte_bar(progress: Callable | None, description: str):
  """What `store.encode` reports to, opening a bar when there is work."""
  if progress is None:
    return None
  shown, advance = 0, None

  def update(done: int, total: int):
    nonlocal shown, advance
    advance = advance or progress(description, total)
    advance(done - shown)
    shown = done

  return update


def _report(counts: Counts, train: Split, validation: Split, rows: Iterable[packing.Rows]) -> dict[str, int | float]:
  joined = packing.Rows.concatenate(list(rows))
  return {
    'documents': train.num_documents + validation.num_documents,
    'train_documents': train.num_documents,
    'validation_documents': validation.num_documents,
    'duplicates': counts['duplicates'],
    'empty_files': counts['empty_files'],
    'empty_documents': counts['empty_documents'],
    'crlf_lines': counts['crlf_lines'],
    'train_bytes': train.num_bytes,
    'validation_bytes': validation.num_bytes,
    'train_tokens': train.num_tokens,
    'validation_tokens': validation.num_tokens,
    'bytes_per_token': train.num_bytes / max(1, train.num_tokens),
    'left_out': train.num_documents - len(joined.lengths) if train.source else 0,  # pairs too long for a row
    'rows': len(joined),
    'slots_used': joined.slots_used,
  }


def text_split(paths: Iterable[str | pathlib.Path], tokenizer: tokenizers.Tokenizer, document: str) -> Split:
  """Text files as one split, to evaluate on; nothing is cached, held out or dropped but empty documents.

  Args:
    paths: files, directories or globs.
    tokenizer: what encodes them.
    document: file | blank-line.

  Raises:
    FileNotFoundError: a path matches no file.
    ValueError: a file is not UTF-8 text, or all are empty.
  """
  files = tuple(file for path in paths for file in corpora.find_files(str(path)))
  read = _read_all(corpora.Corpus('text', files=files, document=document))
  return Split(_in_memory([one.text for one in read], tokenizer), tokenizer.eos_id)


def pair_split(path: str, tokenizer: tokenizers.Tokenizer, data_config) -> Split:
  """The pairs of files as one split; as `text_split`, with the fields of a config."""
  fields = {'source_field': data_config.source_field, 'target_field': data_config.target_field}
  read = _read_all(corpora.Corpus('pairs', files=corpora.find_files(path), **fields))
  source, target = (
    _in_memory(texts, tokenizer) for texts in ([one.text for one in read], [one.target for one in read])
  )
  return Split(target, tokenizer.eos_id, Split(source, tokenizer.eos_id))


def _read_all(corpus: corpora.Corpus) -> list[Document]:
  counts = Counts()
  read = list(corpora.read(corpus, counts))
  if not read:
    raise ValueError(f'no text in {", ".join(map(str, corpus.files))}: {_skipped(counts)}')
  return read


def _in_memory(texts: Sequence[str], tokenizer: tokenizers.Tokenizer) -> store.TokenStore:
  encoded = [tokenizer.encode(text) for text in texts]
  return store.TokenStore(
    tokens=np.concatenate(encoded),
    offsets=np.cumsum([0, *map(len, encoded)]),
    num_bytes=np.array([len(text.encode()) for text in texts]),
    fingerprint='',
  )
