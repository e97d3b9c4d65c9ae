"""UL2's mixture of denoisers (Tay et al. 2022). B rows, R tokens of a raw row, S source and T target slots of a row."""

import dataclasses

import numpy as np

from objectives import rows as rows_lib
from objectives.prediction import need
from objectives.source_to_target import SourceToTarget
from objectives.span_corruption import (
  Noise,
  Room,
  Text,
  check_sentinels,
  corrupted,
  need_sentinels,
  random_spans,
  sentinel_names,
)


@dataclasses.dataclass(frozen=True)
class Denoiser:
  """One of the mixture.

  Attributes:
    mode: 'R' regular, 'S' sequential or 'X' extreme; its token stands before every source.
    noise: how much, and in how many spans; a mean span of 0 is one span at the end of each segment.
    weight: how often it is chosen, before normalisation.
  """

  mode: str
  noise: Noise
  weight: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class UL2(SourceToTarget):
  """Each row gets one of several kinds of span corruption, and is told which by a mode token.

  Attributes:
    denoisers: the mixture.
    num_sentinels: that a tokenizer trained for this has.
  """

  denoisers: tuple[Denoiser, ...] = ()
  num_sentinels: int = 100

  def __post_init__(self):
    need_sentinels(self.special, 'ul2')
    for mode in sorted({denoiser.mode for denoiser in self.denoisers}):
      need(self.special, self.special and self.special.mode_ids.get(mode), 'ul2', f'the mode token [{mode}]')

  @classmethod
  def settings(cls, objective_config):
    if not objective_config.denoisers:
      raise ValueError(
        'objective.denoisers is empty; give a tuple of mappings such as '
        "{'mode': 'R', 'mask_rate': 0.15, 'mean_span': 3.0, 'weight': 1.0}"
      )
    return super().settings(objective_config) | {
      'denoisers': tuple(
        Denoiser(one['mode'], Noise(one['mask_rate'], one['mean_span']), one['weight'])
        for one in objective_config.denoisers
      ),
      'num_sentinels': objective_config.num_sentinels,
    }

  @classmethod
  def reserved(cls, objective_config):
    modes = sorted({f'[{one["mode"]}]' for one in objective_config.denoisers})
    return (*modes, *sentinel_names(objective_config.num_sentinels))

  def row_length(self, sequence_length: int) -> int:
    """As many as the source has: its mode token takes the place of the mark before a document.

    Raises:
      ValueError: a row may be cut into more spans than there are sentinels.
    """
    needed = max(one.noise.counts(sequence_length)[1] if one.noise.mean_span else 1 for one in self.denoisers)
    check_sentinels(self.special, self.num_sentinels, needed, sequence_length)
    return sequence_length

  def examples(self, rows, seeds):
    """Sources int32 [B, S] and targets int32 [B, T], see `SourceToTarget`; S = R, and T fits every denoiser."""
    row_length = rows['tokens'].shape[1]
    target_length = max(
      one.noise.target_length(row_length) if one.noise.mean_span else round(one.noise.mask_rate * row_length) + 2
      for one in self.denoisers
    )
    room = Room.of(row_length, target_length)
    weights = np.array([one.weight for one in self.denoisers])

    def example(row, rng):
      denoiser = self.denoisers[rng.choice(len(weights), p=weights / weights.sum())]
      text = Text.of(row, self.special)
      if denoiser.noise.mean_span:
        spans = random_spans(text, denoiser.noise, room, self.special, rng)
      else:
        spans = _suffixes(text, denoiser.noise.mask_rate, room)
      return corrupted(text, spans, room, self.special, self.special.mode_ids[denoiser.mode])

    return rows_lib.each(rows, seeds, example)


def _suffixes(text: Text, mask_rate: float, room: Room) -> np.ndarray:
  """Spans int [S, 2] at the end of segments, the longest segments first as long as there is room for their targets."""
  used, found = 0, []
  for i in np.argsort(-text.lengths, kind='stable'):
    size = min(max(round(mask_rate * text.lengths[i]), 1), text.lengths[i])
    if size and used + size + 2 <= room.target_length:
      used += size + 2  # its sentinel and its end
      found.append((text.stretches[i, 1] - size, text.stretches[i, 1]))
  return np.array(sorted(found), np.int64).reshape(-1, 2)
