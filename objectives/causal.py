"""Next-token prediction. B rows, L inputs, R = L + 1 tokens a raw row."""

import dataclasses

import numpy as np

from objectives.prediction import IGNORED, TOKENS, TokenPrediction, stream


@dataclasses.dataclass(frozen=True, kw_only=True)
class Causal(TokenPrediction):
  """The causal language-modelling objective (Radford et al. 2018, eq. 1); see `Objective`."""

  batch_axes = {'tokens': TOKENS, 'labels': TOKENS, 'segment_ids': TOKENS, 'positions': TOKENS}
  codes_text = True

  def row_length(self, sequence_length: int) -> int:
    """One more than the model sees: the last token is only a target."""
    return sequence_length + 1

  def examples(self, rows, seeds):
    """Inputs and the tokens after them, int32 [B, L]; a label counts where it continues the segment of its input."""
    del seeds
    segments = rows['segment_ids']
    counted = (segments[:, :-1] == segments[:, 1:]) & (segments[:, 1:] != 0)
    inputs = {name: np.ascontiguousarray(values[:, :-1]) for name, values in rows.items()}
    return inputs | {'labels': np.where(counted, rows['tokens'][:, 1:], np.int32(IGNORED))}

  def loss(self, model):
    def loss(params, batch, rng):
      hidden_BxLxD, metrics = model.hidden(params, stream(batch), rng)
      return self.mean(model, params, hidden_BxLxD, batch['labels'], metrics)

    return loss
