"""Rows of a fixed length, cut from a stream of tokens.

A split's stream is `EOS d1 EOS d2 EOS ... dn EOS`: every document with the EOS before and the EOS after it, which it
shares with its neighbours. A row is one or more intervals of that stream, its pieces; each is a segment of its own. So
packed documents and contiguous windows are the same thing with other intervals, and rows are built only when asked for.

A piece of k tokens has k - 1 targets (its first token is only an input), and pieces of a document overlap by one token,
so over all pieces every token of every document and the EOS after it is a target exactly once.
"""

import dataclasses
from collections.abc import Sequence
from typing import Self

import numpy as np

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Rows:
  """Rows as intervals of a stream.

  Attributes:
    starts: int64 [pieces], where a piece starts in the stream.
    lengths: int64 [pieces], its tokens.
    offsets: int64 [rows + 1]; row i holds pieces offsets[i] to offsets[i + 1].
    row_length: tokens a row has place for.
    source: where the sources lie whose targets these rows are, piece by piece; None where the rows are no pairs.
  """

  starts: np.ndarray
  lengths: np.ndarray
  offsets: np.ndarray
  row_length: int
  source: Self | None = None

  def __len__(self) -> int:
    return len(self.offsets) - 1

  @property
  def num_targets(self) -> int:
    return int(self.lengths.sum()) - (len(self.lengths) if self.source is None else 0)

  @property
  def slots_used(self) -> float:
    """Share of the slots of all rows, of sources too, that hold a token."""
    sides = [self] if self.source is None else [self, self.source]
    slots = sum(len(side) * side.row_length for side in sides)
    return float(sum(side.lengths.sum() for side in sides)) / max(1, slots)

  @classmethod
  def concatenate(cls, parts: Sequence[Self]) -> Self:
    ends = np.cumsum([part.offsets[-1] for part in parts])
    offsets = [part.offsets[1:] + end - part.offsets[-1] for part, end in zip(parts, ends, strict=True)]
    return cls(
      np.concatenate([part.starts for part in parts]),
      np.concatenate([part.lengths for part in parts]),
      np.concatenate([[0], *offsets]).astype(np.int64),
      parts[0].row_length,
      None if parts[0].source is None else cls.concatenate([part.source for part in parts]),
    )


def pack(boundaries: np.ndarray, row_length: int, packing: str, seed: int = 0) -> Rows:
  """The rows of consecutive documents.

  Args:
    boundaries: int64 [documents + 1], positions of the EOS around the documents in the stream.
    row_length: tokens a row has place for, at least 2.
    packing: documents (pieces of documents, packed whole by best fit) | none (contiguous windows).
    seed: which documents of equal length share a row.

  Raises:
    ValueError: `packing` or `row_length` is not allowed.
  """
  check(row_length, packing)
  if packing == 'documents':
    return _packed_documents(boundaries, row_length, np.random.default_rng(seed))
  starts, lengths = _cut(boundaries[:1], boundaries[-1:] - boundaries[:1], row_length)
  return Rows(starts, lengths, np.arange(len(starts) + 1), row_length)


def pack_pairs(sources: np.ndarray, targets: np.ndarray, source_length: int, target_length: int, seed: int = 0) -> Rows:
  """Rows of pairs, packed on both sides: piece i of a row of targets belongs to piece i of its `source`.

  A piece is a text with the EOS after it. Pairs of which a side is longer than a row are left out.

  Args:
    sources, targets: int64 [pairs + 1], positions of the EOS around the texts in the stream of each side.
    source_length, target_length: tokens a row has place for.
    seed: which pairs of equal length share a row.
  """
  lengths = np.stack([np.diff(sources), np.diff(targets)])
  limits = np.array([[source_length], [target_length]])
  fitting = np.flatnonzero((lengths <= limits).all(axis=0))
  # Packed by the side that takes the greater share of its row, so that both fit.
  capacity = int(limits.max())
  sizes = (-(-lengths[:, fitting] * capacity // limits)).max(axis=0)
  bins = best_fit(sizes, capacity, np.random.default_rng(seed))
  order = np.argsort(bins, kind='stable')
  offsets = np.concatenate([[0], np.cumsum(np.bincount(bins))]).astype(np.int64)
  pairs = fitting[order]
  source = Rows(sources[pairs] + 1, lengths[0, pairs], offsets, source_length)
  return Rows(targets[pairs] + 1, lengths[1, pairs], offsets, target_length, source)


def check(row_length: int, packing: str) -> None:
  """Raises ValueError if there is no such packing, or rows have no place for a target."""
  if packing not in ('documents', 'none'):
    raise ValueError(f'data.packing is {packing!r}; it must be documents or none')
  if row_length < 2:
    raise ValueError(f'rows of {row_length} token(s) have no target; data.sequence_length must be at least 1')


def _packed_documents(boundaries, row_length, rng):
  starts, lengths = _cut(boundaries[:-1], np.diff(boundaries), row_length)
  bins = best_fit(lengths, row_length, rng)
  order = np.argsort(bins, kind='stable')
  offsets = np.concatenate([[0], np.cumsum(np.bincount(bins))]).astype(np.int64)
  return Rows(starts[order], lengths[order], offsets, row_length)


def _cut(starts, targets, row_length):
  """Pieces of the intervals that start at `starts` and have `targets` tokens after their first one."""
  stride = row_length - 1
  counts = -(-targets // stride)
  rank = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
  lengths = np.minimum(np.repeat(targets, counts) - rank * stride, stride) + 1
  return np.repeat(starts, counts) + rank * stride, lengths


def best_fit(lengths: np.ndarray, capacity: int, rng: np.random.Generator) -> np.ndarray:
  """The bin of each item by best-fit decreasing: the longest first, each into the fullest bin that still takes it.

  Items of one length, and bins with one gap, are handled together, so the time depends on `capacity` and hardly on the
  number of items.

  Args:
    lengths: int [items], each from 1 to `capacity`.
    capacity: of a bin.
    rng: decides the order of items of equal length.

  Returns:
    int64 [items], bins numbered from 0.
  """
  bins = np.empty(len(lengths), np.int64)
  order = rng.permutation(len(lengths))
  order = order[np.argsort(-lengths[order], kind='stable')]
  by_gap: dict[int, list[np.ndarray]] = {}
  gaps = 0  # bit g is set where a bin with g free slots exists
  num_bins = 0
  for items in np.split(order, np.flatnonzero(np.diff(lengths[order])) + 1) if len(order) else []:
    length = int(lengths[items[0]])
    while len(items):
      fitting = gaps >> length
      if fitting:
        gap = length + (fitting & -fitting).bit_length() - 1
        candidates = np.concatenate(by_gap.pop(gap))
        gaps &= ~(1 << gap)
      else:
        gap = capacity
        candidates = np.arange(num_bins, num_bins - (-len(items) // (capacity // length)))
        num_bins += len(candidates)
      each = gap // length
      used = candidates[: -(-len(items) // each)]
      placed = items[: len(used) * each]
      bins[placed] = np.repeat(used, each)[: len(placed)]
      in_last = len(placed) - (len(used) - 1) * each
      left = ((gap - each * length, used[:-1]), (gap - in_last * length, used[-1:]), (gap, candidates[len(used) :]))
      for free, group in left:
        if free and len(group):
          by_gap.setdefault(free, []).append(group)
          gaps |= 1 << free
      items = items[len(placed) :]
  return bins


def build(rows: Rows, ids: np.ndarray, stream) -> Batch:
  """The batch of the rows `ids`.

  Args:
    rows: where they lie.
    ids: int [B]; a negative one makes a row of padding.
    stream: function from int64 positions [n] of the stream to int32 tokens [n].

  Returns:
    tokens, segment_ids (from 1; 0 = padding) and positions (from 0 in each segment): int32 [B, row_length].
  """
  real = ids >= 0
  first = np.where(real, rows.offsets[ids], 0)
  num_pieces = np.where(real, rows.offsets[ids + 1] - first, 0)
  rank = _ranges(num_pieces)
  pieces = np.repeat(first, num_pieces) + rank
  lengths = rows.lengths[pieces]
  before = np.concatenate([[0], np.cumsum(lengths)])  # rows of padding behind the last piece begin at its end
  row_before = np.repeat(before[np.cumsum(num_pieces) - num_pieces], num_pieces)
  row_starts = np.repeat(np.arange(len(ids)) * rows.row_length, num_pieces)
  positions = _ranges(lengths)
  slots = np.repeat(row_starts + before[:-1] - row_before, lengths) + positions
  batch = {name: np.zeros((len(ids), rows.row_length), np.int32) for name in ('tokens', 'segment_ids', 'positions')}
  batch['tokens'].reshape(-1)[slots] = stream(np.repeat(rows.starts[pieces], lengths) + positions)
  batch['segment_ids'].reshape(-1)[slots] = np.repeat(rank + 1, lengths)
  batch['positions'].reshape(-1)[slots] = positions
  return batch


def _ranges(lengths: np.ndarray) -> np.ndarray:
  """0 .. n - 1 for each n of `lengths`, one after the other."""
  return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
