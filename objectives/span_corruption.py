"""Span corruption (Raffel et al. 2020). B rows, R tokens of a raw row, S source and T target slots of a row."""

import dataclasses
import functools

import numpy as np

from objectives import rows as rows_lib
from objectives import spans as spans_lib
from objectives.prediction import need
from objectives.source_to_target import SourceToTarget

_GROUP = 16  # slots of targets


@dataclasses.dataclass(frozen=True)
class Noise:
  """How much of a row is taken out, and in how many spans.

  Attributes:
    mask_rate: share of the tokens.
    mean_span: mean length of the spans.
  """

  mask_rate: float
  mean_span: float

  def counts(self, tokens: int) -> tuple[int, int]:
    """Tokens taken out of so many, and their spans; as T5's `random_spans_noise_mask`, but all of one token."""
    if not tokens:
      return 0, 0
    noise = min(max(round(tokens * self.mask_rate), 1), tokens)
    return noise, min(max(round(noise / self.mean_span), 1), noise)

  def source_length(self, row_length: int) -> int:
    """Slots that the source of a raw row takes at most: what stays, a sentinel a span, and the end of the text.

    Documents of a single token, each with its marks, take two thirds of a row whatever is left out.
    """
    noise, spans = self.counts(row_length)
    return max(row_length - noise + spans + 1, -(-2 * row_length // 3))

  def row_length(self, source_length: int) -> int:
    """Tokens of the longest raw row that fits, as T5's `random_spans_helper`: 568 for a source of 512."""
    length = max(source_length - 1, 1)
    while self.source_length(length + 1) <= source_length:
      length += 1
    return length

  @functools.lru_cache  # noqa: B019  # of values, which are few
  def target_length(self, row_length: int) -> int:
    """Slots that the targets of a raw row take at most, whatever documents are packed in it.

    Of one document T5's 114 of 568; of k documents, each between two marks of its own, k - 1 more ends.
    """
    lengths = [sum(self.counts(row_length)) + 1]
    for documents in range(1, row_length // 3 + 1):
      noise, spans = self.counts(row_length - 2 * documents)
      lengths.append(noise + spans + min(documents, spans))
    return max(lengths)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpanCorruption(SourceToTarget):
  """Spans of each segment are replaced by sentinels; the target has each sentinel with the span it stands for.

  A row's tokens are taken out at T5's rate and in T5's number of spans, which lie within the segments. Not counted are
  the token that a segment begins with (the mark before a document, or the last token of the piece before), which is no
  part of source or target, and the mark that ends a document, which stays in the source. A target ends with one.

  Attributes:
    noise: how much, and in how many spans.
    num_sentinels: that a tokenizer trained for this has.
  """

  noise: Noise = Noise(0.15, 3.0)
  num_sentinels: int = 100

  def __post_init__(self):
    need_sentinels(self.special, 'span_corruption')

  @classmethod
  def settings(cls, objective_config):
    return super().settings(objective_config) | {
      'noise': Noise(objective_config.mask_rate, objective_config.mean_span),
      'num_sentinels': objective_config.num_sentinels,
    }

  @classmethod
  def reserved(cls, objective_config):
    return sentinel_names(objective_config.num_sentinels)

  def row_length(self, sequence_length: int) -> int:
    """The longest raw row whose sources fit into `sequence_length`.

    Raises:
      ValueError: it may be cut into more spans than there are sentinels.
    """
    length = self.noise.row_length(sequence_length)
    check_sentinels(self.special, self.num_sentinels, self.noise.counts(length)[1], sequence_length)
    return length

  def examples(self, rows, seeds):
    """Sources int32 [B, S] and targets int32 [B, T], see `SourceToTarget`; S and T follow from R."""
    row_length = rows['tokens'].shape[1]
    room = Room.of(self.noise.source_length(row_length), self.noise.target_length(row_length))

    def example(row, rng):
      text = Text.of(row, self.special)
      return corrupted(text, random_spans(text, self.noise, room, self.special, rng), room, self.special)

    return rows_lib.each(rows, seeds, example)


@dataclasses.dataclass(frozen=True)
class Room:
  """Slots of a row on both sides."""

  source_length: int
  target_length: int

  @classmethod
  def of(cls, source_length: int, target_length: int) -> 'Room':
    """At least so many; those of targets come in groups, which devices can share."""
    return cls(source_length, -(-target_length // _GROUP) * _GROUP)


@dataclasses.dataclass(frozen=True)
class Text:
  """A raw row as corruption sees it.

  Attributes:
    tokens_R: int32.
    segments: int [K, 2], where each begins and ends; its first token is no part of the text.
    stretches: int [K, 2], the same without that token and without the mark that ends a document.
  """

  tokens_R: np.ndarray
  segments: np.ndarray
  stretches: np.ndarray

  @classmethod
  def of(cls, row, special):
    segments = rows_lib.runs(row['segment_ids'])
    begins, ends = segments[:, 0] + 1, segments[:, 1]
    ends = np.maximum(ends - (row['tokens'][ends - 1] == special.eos_id), begins)
    return cls(row['tokens'], segments, np.stack([begins, ends], axis=1))

  @property
  def lengths(self) -> np.ndarray:
    """int [K], tokens of the stretches."""
    return self.stretches[:, 1] - self.stretches[:, 0]

  def segments_of(self, spans: np.ndarray) -> np.ndarray:
    """The index of the segment of each of int [S, 2] spans."""
    return np.searchsorted(self.segments[:, 0], spans[:, 0], side='right') - 1


def random_spans(text: Text, noise: Noise, room: Room, special, rng) -> np.ndarray:
  """Spans int [S, 2] to take out of a row, at random, such that both sides fit.

  Where a row holds so many short segments that random spans of them do not fit, the fewest spans do it.
  """
  wanted, count = noise.counts(int(text.lengths.sum()))
  found = spans_lib.place(rng, text.stretches, spans_lib.sizes(rng, wanted, count) if wanted else [])
  return found if _fits(text, found, room, special) else spans_lib.fewest(text.stretches, wanted)


def _fits(text, spans, room, special):
  taken, counts = int((spans[:, 1] - spans[:, 0]).sum()), np.bincount(text.segments_of(spans), minlength=1)
  whole = int((text.segments[:, 1] - text.segments[:, 0] - 1).sum())
  return (
    whole - taken + len(spans) <= room.source_length
    and taken + len(spans) + np.count_nonzero(counts) <= room.target_length
    and counts.max() <= len(special.sentinel_ids)
  )


def corrupted(text: Text, spans: np.ndarray, room: Room, special, mode_id: int | None = None):
  """The example of a row whose spans are taken out; `mode_id` stands before every source."""
  owners = text.segments_of(spans)
  sources, targets = [], []
  for i, (start, stop) in enumerate(text.segments):
    source, target, begin = [[] if mode_id is None else [mode_id]], [], start + 1
    for sentinel, (left, right) in zip(special.sentinel_ids, spans[owners == i]):
      source += [text.tokens_R[begin:left], [sentinel]]
      target += [[sentinel], text.tokens_R[left:right]]
      begin = right
    sources.append(np.concatenate([*source, text.tokens_R[begin:stop]]).astype(np.int32))
    targets.append(np.concatenate([*target, [special.eos_id]] if target else [[]]).astype(np.int32))
  return rows_lib.source_to_target(sources, targets, room.source_length, room.target_length, special.start_id)


def sentinel_names(count: int) -> tuple[str, ...]:
  """Names of sentinels in the order of their ids: the first one is the last of the vocabulary, as in T5."""
  return tuple(f'<extra_id_{i}>' for i in reversed(range(count)))


def need_sentinels(special, objective_name: str) -> None:
  """Raises ValueError where a vocabulary that is known has no sentinels."""
  need(special, special and special.sentinel_ids, objective_name, 'sentinels, <extra_id_0>, <extra_id_1>, ...,')


def check_sentinels(special, reserved: int, needed: int, sequence_length: int) -> None:
  """Raises ValueError where a row may need more sentinels than the vocabulary has, or will have."""
  there = reserved if special is None else len(special.sentinel_ids)
  if needed > there:
    raise ValueError(
      f'a row of data.sequence_length={sequence_length} is cut into {needed} spans, but there are {there} sentinels; '
      f'train a tokenizer with --config.objective.num_sentinels={needed}, or shorten the rows'
    )
