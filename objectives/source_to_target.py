"""What objectives of encoder-decoders share. B rows, L tokens."""

import dataclasses

from objectives.prediction import TOKENS, TokenPrediction, stream


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceToTarget(TokenPrediction):
  """The base of objectives of encoder-decoders: the decoder predicts targets, each from its own source.

  The decoder's inputs `tokens` are the labels shifted right, behind the start token; both sides of a row are packed,
  and a target has the segment id of its source.
  """

  batch_axes = {
    'source_tokens': TOKENS,
    'source_segment_ids': TOKENS,
    'source_positions': TOKENS,
    'tokens': TOKENS,
    'segment_ids': TOKENS,
    'positions': TOKENS,
    'labels': TOKENS,
  }

  def loss(self, model):
    def loss(params, batch, rng):
      hidden_BxLxD, metrics = model.hidden(params, stream(batch, 'source_'), stream(batch), rng)
      return self.mean(model, params, hidden_BxLxD, batch['labels'], metrics)

    return loss
