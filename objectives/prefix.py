"""Prefix language modelling. B rows, L inputs, R = L + 1 tokens a raw row."""

import dataclasses

import numpy as np

from model import Visibility
from objectives import rows as rows_lib
from objectives.causal import Causal
from objectives.prediction import IGNORED, TOKENS, stream


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prefix(Causal):
  """Each segment is split at a random place: the prefix sees all of itself, the rest is predicted (Raffel et al. 2020).

  The split of a segment of n tokens is uniform over 1 to n - 1 tokens of prefix. `order` is 0 in the prefix and the
  position behind it, as `Visibility.PREFIX` wants it.
  """

  batch_axes = Causal.batch_axes | {'order': TOKENS}

  def examples(self, rows, seeds):
    """As `Causal`, with labels that count from the first token after the prefix on, and `order`, int32 [B, L]."""
    prefix_BxR = np.zeros_like(rows['tokens'])
    for i, seed in enumerate(seeds):
      rng = np.random.default_rng(seed)
      for start, stop in rows_lib.runs(rows['segment_ids'][i]):
        prefix_BxR[i, start:stop] = rng.integers(1, max(stop - start, 2))
    batch, prefix_BxL = super().examples(rows, seeds), prefix_BxR[:, :-1]
    positions = batch['positions']
    return batch | {
      'labels': np.where(positions >= prefix_BxL - 1, batch['labels'], np.int32(IGNORED)),
      'order': np.where(positions < prefix_BxL, np.int32(0), positions),
    }

  def generator(self, model):
    """The model that takes prompts for prefixes."""
    return dataclasses.replace(model, visibility=Visibility.PREFIX)

  def loss(self, model):
    def loss(params, batch, rng):
      hidden_BxLxD, metrics = model.hidden(params, stream(batch), rng, Visibility.PREFIX)
      return self.mean(model, params, hidden_BxLxD, batch['labels'], metrics)

    return loss
