"""Masked language modelling (Devlin et al. 2018). B rows, L tokens of a raw row, all of which the model sees."""

import dataclasses

import numpy as np

from model import Visibility
from objectives import rows as rows_lib
from objectives.prediction import IGNORED, TOKENS, TokenPrediction, need, stream

MASK = '[MASK]'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Masked(TokenPrediction):
  """Predicts chosen tokens, most of which are hidden; the choice is another one in every epoch (Liu et al. 2019).

  Of a row's tokens, special ones not counted, `mask_rate` are chosen, to the nearest whole number. Each becomes the
  mask token, but with probability `random_rate` a random token, and with `keep_rate` it stays. The mark that begins a
  document becomes the vocabulary's own for that ([CLS], <s>), if it has one.

  Attributes:
    mask_rate: share of tokens that are predicted.
    random_rate, keep_rate: of these, the shares that are not hidden by the mask token.
    whole_words: words are chosen, with all of their tokens, until the next one would be too many.
  """

  mask_rate: float = 0.15
  random_rate: float = 0.1
  keep_rate: float = 0.1
  whole_words: bool = False

  batch_axes = {'tokens': TOKENS, 'labels': TOKENS, 'segment_ids': TOKENS, 'positions': TOKENS}
  generates = False

  def __post_init__(self):
    need(self.special, self.special and self.special.mask_id, 'masked', 'a mask token, [MASK] or <mask>,')

  @classmethod
  def settings(cls, objective_config):
    random_rate, keep_rate = objective_config.random_rate, objective_config.keep_rate
    if random_rate + keep_rate > 1:
      raise ValueError(
        f'objective.random_rate={random_rate} and objective.keep_rate={keep_rate} are more than 1 together; BERT has '
        '0.1 and 0.1'
      )
    return super().settings(objective_config) | {
      'mask_rate': objective_config.mask_rate,
      'random_rate': random_rate,
      'keep_rate': keep_rate,
      'whole_words': objective_config.whole_words,
    }

  @classmethod
  def reserved(cls, objective_config):
    return (MASK,)

  def row_length(self, sequence_length: int) -> int:
    return sequence_length

  def examples(self, rows, seeds):
    """What the model sees and the chosen tokens as labels, int32 [B, L]."""
    return rows_lib.each(rows, seeds, self._example)

  def _example(self, row, rng):
    special, tokens_L, segment_ids_L = self.special, row['tokens'], row['segment_ids']
    choosable_L = special.ordinary[tokens_L] & (segment_ids_L > 0)
    chosen = self._choose(tokens_L, np.where(choosable_L, segment_ids_L, 0), rng)
    draws = rng.random(len(chosen))
    random_tokens = rng.choice(special.ordinary_ids, len(chosen))
    hidden = np.where(draws < self.random_rate, random_tokens, special.mask_id)
    kept = draws >= 1 - self.keep_rate
    opens_L = (row['positions'] == 0) & (tokens_L == special.eos_id) & (segment_ids_L > 0)
    inputs_L = np.where(opens_L, np.int32(special.opening_id), tokens_L)
    inputs_L[chosen] = np.where(kept, tokens_L[chosen], hidden)
    labels_L = np.full_like(tokens_L, IGNORED)
    labels_L[chosen] = tokens_L[chosen]
    return row | {'tokens': inputs_L, 'labels': labels_L}

  def _choose(self, tokens_L, stretch_ids_L, rng) -> np.ndarray:
    """Indices of the tokens to predict, among those whose stretch is not 0."""
    choosable = np.flatnonzero(stretch_ids_L)
    wanted = min(max(round(self.mask_rate * len(choosable)), 1), len(choosable))
    if not self.whole_words:
      return rng.permutation(choosable)[:wanted]
    words = np.split(choosable, np.flatnonzero(word_starts(self.special, tokens_L, stretch_ids_L)[choosable])[1:])
    chosen, count = [], 0
    for i in rng.permutation(len(words)):
      if count + len(words[i]) <= wanted:
        chosen.append(words[i])
        count += len(words[i])
      if count == wanted:
        break
    return np.concatenate(chosen) if chosen else choosable[:0]

  def loss(self, model):
    def loss(params, batch, rng):
      hidden_BxLxD, metrics = model.hidden(params, stream(batch), rng, Visibility.BIDIRECTIONAL)
      return self.mean(model, params, hidden_BxLxD, batch['labels'], metrics)

    return loss


def word_starts(special, tokens_L, stretch_ids_L) -> np.ndarray:
  """bool [L]: tokens that begin a word, the first one of a stretch always."""
  starts_L = special.opens_word[tokens_L]
  starts_L[1:] |= special.closes_word[tokens_L[:-1]] | (stretch_ids_L[1:] != stretch_ids_L[:-1])
  starts_L[:1] = True
  return starts_L
