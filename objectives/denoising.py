"""Denoising of whole documents (Lewis et al. 2019, BART). B rows, R tokens of a raw row, slots on both sides."""

import dataclasses

import numpy as np

from objectives import rows as rows_lib
from objectives import spans as spans_lib
from objectives.masked import MASK
from objectives.prediction import need
from objectives.source_to_target import SourceToTarget


@dataclasses.dataclass(frozen=True, kw_only=True)
class Denoising(SourceToTarget):
  """The target is the text of each segment, the source the same after noise of several kinds, in the order below.

  Rates are shares of a row's tokens, special ones not counted, to the nearest whole number. A source begins with the
  vocabulary's mark for that ([CLS], <s>, else the one that ends a document). No source is longer than its text.

  Attributes:
    permute_sentences: the sentences of a segment, which end with a full stop or the like, are shuffled.
    deletion_rate: share of tokens that are left out.
    masking_rate: share of tokens replaced by a mask each.
    infilling_rate: share of tokens in spans that are replaced by one mask each.
    infilling_mean: mean length of these spans, which is a Poisson number; one of 0 inserts a mask.
    rotation_rate: share of segments that begin at a random token, what stood before it following at the end.
  """

  permute_sentences: bool = True
  deletion_rate: float = 0.0
  masking_rate: float = 0.0
  infilling_rate: float = 0.3
  infilling_mean: float = 3.0
  rotation_rate: float = 0.0

  def __post_init__(self):
    need(self.special, self.special and self.special.mask_id, 'denoising', 'a mask token, [MASK] or <mask>,')

  @classmethod
  def settings(cls, objective_config):
    denoising_config = objective_config.denoising
    return super().settings(objective_config) | {
      'permute_sentences': denoising_config.permute_sentences,
      'deletion_rate': denoising_config.deletion_rate,
      'masking_rate': denoising_config.masking_rate,
      'infilling_rate': denoising_config.infilling_rate,
      'infilling_mean': denoising_config.infilling_mean,
      'rotation_rate': denoising_config.rotation_rate,
    }

  @classmethod
  def reserved(cls, objective_config):
    return (MASK,)

  def row_length(self, sequence_length: int) -> int:
    return sequence_length

  def examples(self, rows, seeds):
    """Sources and targets, int32 [B, R] each, see `SourceToTarget`."""
    return rows_lib.each(rows, seeds, self._example)

  def _example(self, row, rng):
    special = self.special
    texts = [row['tokens'][start + 1 : stop] for start, stop in rows_lib.runs(row['segment_ids'])]
    ends = [text[-1:] if len(text) and text[-1] == special.eos_id else text[:0] for text in texts]
    bodies = [text[: len(text) - len(end)] for text, end in zip(texts, ends, strict=True)]
    if self.permute_sentences:
      bodies = [_shuffled_sentences(body, special, rng) for body in bodies]
    bodies = self._corrupt(bodies, rng)
    if self.rotation_rate:
      bodies = [np.roll(b, rng.integers(max(len(b), 1))) if rng.random() < self.rotation_rate else b for b in bodies]
    opening = np.array([special.opening_id], np.int32)
    sources = [np.concatenate([opening, body, end]) for body, end in zip(bodies, ends, strict=True)]
    length = len(row['tokens'])
    return rows_lib.source_to_target(sources, texts, length, length, special.start_id)

  def _corrupt(self, bodies, rng):
    """Deletion, masking and infilling of all segments of a row together, so that the rates are those of the row."""
    if not bodies:
      return []
    tokens = np.concatenate(bodies)
    owners = np.repeat(np.arange(len(bodies)), [len(body) for body in bodies])
    deleted = self._choose(tokens, self.deletion_rate, rng)
    tokens, owners, removed = np.delete(tokens, deleted), np.delete(owners, deleted), len(deleted)
    tokens[self._choose(tokens, self.masking_rate, rng)] = self.special.mask_id
    if self.infilling_rate:
      tokens, owners = self._infill(tokens, owners, removed, rng)
    return [tokens[owners == i] for i in range(len(bodies))]

  def _choose(self, tokens, rate, rng):
    """Indices of a share of the ordinary tokens."""
    ordinary = np.flatnonzero(self.special.ordinary[tokens])
    return rng.permutation(ordinary)[: round(rate * len(ordinary))]

  def _infill(self, tokens, owners, removed, rng):
    stretches = rows_lib.runs(np.where(self.special.ordinary[tokens], owners + 1, 0))
    wanted = round(self.infilling_rate * int((stretches[:, 1] - stretches[:, 0]).sum()))
    sizes, insertions = poisson_sizes(rng, wanted, self.infilling_mean)
    covered = np.zeros(len(tokens), bool)
    for start, stop in spans_lib.place(rng, stretches, sizes):
      tokens[start] = self.special.mask_id
      covered[start + 1 : stop] = True
    tokens, owners, removed = tokens[~covered], owners[~covered], removed + int(covered.sum())
    places = rng.integers(len(tokens), size=min(insertions, removed)) if len(tokens) else []
    return np.insert(tokens, places, self.special.mask_id), np.insert(owners, places, owners[places])


def poisson_sizes(rng: np.random.Generator, total: int, mean: float) -> tuple[np.ndarray, int]:
  """Poisson numbers up to a sum of `total`, which shortens the last one: those above 0, and how many are 0."""
  drawn = np.zeros(0, np.int64)
  while drawn.sum() < total:
    drawn = np.concatenate([drawn, rng.poisson(mean, int(total / mean) + 1)])
  ends = np.cumsum(drawn)
  drawn = drawn[: np.searchsorted(ends, total) + 1] if total else drawn[:0]
  drawn[-1:] -= drawn.sum() - total
  return drawn[drawn > 0], int((drawn == 0).sum())


def _shuffled_sentences(body, special, rng):
  sentences = np.split(body, np.flatnonzero(special.ends_sentence[body][:-1]) + 1)
  return np.concatenate([sentences[i] for i in rng.permutation(len(sentences))])
