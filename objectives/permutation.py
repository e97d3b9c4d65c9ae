"""Permutation language modelling (Yang et al. 2019). B rows, L tokens of a raw row, T targets of a row."""

import dataclasses

import numpy as np

from objectives import rows as rows_lib
from objectives.prediction import IGNORED, TOKENS, TokenPrediction, stream


@dataclasses.dataclass(frozen=True, kw_only=True)
class Permutation(TokenPrediction):
  """XLNet's objective: tokens are predicted in a random order, each from those before it and from its own place.

  Of a row's tokens, special ones not counted, one of `partial_prediction` is a target: spans of 1 to `max_span` tokens,
  each in a context of `partial_prediction` times its length. All others come first in the factorisation order, as
  context that sees itself whole; the targets follow in an order drawn anew for each row and epoch.

  It wants a model with two streams:

      model.hidden_two_streams(params, stream, targets_BxT, rng) -> (hidden [B, T, D] of the query stream, metrics)

  `stream` has the tokens [B, L] with `order` int32 [B, L]: 0 of context, else the token's rank among the row's targets,
  from 1. `targets_BxT`, int32, is where in its row each target stands. In the content stream a token sees those of its
  segment whose order is at most its own (`Visibility.ORDER`); the query of a target starts from its position alone and
  sees the content of those whose order is below its own. Unused entries of `targets_BxT` are 0; their labels are
  ignored.

  Attributes:
    partial_prediction: XLNet's K.
    max_span: tokens.
  """

  partial_prediction: int = 6
  max_span: int = 5

  batch_axes = dict.fromkeys(('tokens', 'segment_ids', 'positions', 'order', 'targets', 'labels'), TOKENS)
  generates = False

  @classmethod
  def settings(cls, objective_config):
    return super().settings(objective_config) | {
      'partial_prediction': objective_config.partial_prediction,
      'max_span': objective_config.max_span,
    }

  def row_length(self, sequence_length: int) -> int:
    return sequence_length

  def examples(self, rows, seeds):
    """The rows with their `order`, int32 [B, L], and `targets` and `labels`, int32 [B, T]; T is L / K rounded up."""
    return rows_lib.each(rows, seeds, self._example)

  def _example(self, row, rng):
    tokens_L = row['tokens']
    choosable = np.flatnonzero(self.special.ordinary[tokens_L] & (row['segment_ids'] > 0))
    chosen = choosable[self._choose(len(choosable), rng)]
    order_L = np.zeros_like(tokens_L)
    order_L[rng.permutation(chosen)] = 1 + np.arange(len(chosen))
    targets_T = np.zeros(-(-len(tokens_L) // self.partial_prediction), np.int32)
    labels_T = np.full_like(targets_T, IGNORED)
    targets_T[: len(chosen)] = chosen
    labels_T[: len(chosen)] = tokens_L[chosen]
    return row | {'order': order_L, 'targets': targets_T, 'labels': labels_T}

  def _choose(self, count: int, rng) -> np.ndarray:
    """Which of `count` tokens in a line are targets: a span from each of contexts side by side."""
    chosen, begin, factor = [], 0, self.partial_prediction
    while count - begin >= factor:
      size = min(int(rng.integers(1, self.max_span + 1)), (count - begin) // factor)
      start = begin + rng.integers(size * factor - size + 1)
      chosen.extend(range(start, start + size))
      begin += size * factor
    if rng.random() * factor < count - begin:
      chosen.append(begin + int(rng.integers(count - begin)))
    return np.array(chosen, np.int64)

  def loss(self, model):
    def loss(params, batch, rng):
      hidden_BxTxD, metrics = model.hidden_two_streams(params, stream(batch), batch['targets'], rng)
      return self.mean(model, params, hidden_BxTxD, batch['labels'], metrics)

    return loss
