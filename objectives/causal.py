"""Next-token prediction. B rows, L inputs, R = L + 1 tokens a raw row."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from model import Metric, Stream
from objectives import summary
from objectives.auxiliary import auxiliary_loss
from parallel import axes as ax

IGNORED = -1
_TOKENS = (ax.BATCH, ax.LENGTH)


@dataclasses.dataclass(frozen=True)
class Causal:
  """The causal language-modelling objective (Radford et al. 2018, eq. 1); see `Objective`.

  Attributes:
    label_smoothing: probability spread evenly over the vocabulary.
    z_loss: weight of log(Z)^2.
  """

  label_smoothing: float = 0.0
  z_loss: float = 0.0

  batch_axes = {'tokens': _TOKENS, 'labels': _TOKENS, 'segment_ids': _TOKENS, 'positions': _TOKENS}

  @classmethod
  def from_config(cls, objective_config):
    return cls(objective_config.label_smoothing, objective_config.z_loss)

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
    """The mean over counted tokens, label smoothing, z-loss and what layers add (`auxiliary_loss`) included; metrics
    are of plain cross-entropy (`loss`, in nats), of the most probable token (`accuracy`), and those of the layers."""

    def loss(params, batch, rng):
      stream = Stream(batch['tokens'], batch['positions'], batch['segment_ids'])
      hidden_BxLxD, metrics = model.hidden(params, stream, rng)
      result = model.cross_entropy(params, hidden_BxLxD, batch['labels'], self.label_smoothing, self.z_loss)
      counted = batch['labels'] != IGNORED
      tokens = jnp.sum(counted, dtype=jnp.float32)
      correct = jnp.sum(result.correct & counted, dtype=jnp.float32)
      mean = result.total / jnp.maximum(tokens, 1.0) + auxiliary_loss(metrics)
      metrics = {'loss': Metric(jnp.sum(result.nll), tokens), 'accuracy': Metric(correct, tokens), **metrics}
      return mean, jax.lax.stop_gradient(metrics)

    return loss

  def summarize(self, metrics, bytes_per_target):
    """The means, and of the loss perplexity and bits per byte."""
    values = {name: metric.value for name, metric in metrics.items()}
    loss = values.pop('loss')
    return {
      'loss': loss,
      'perplexity': summary.perplexity(loss),
      'accuracy': values.pop('accuracy'),
      'bits_per_byte': summary.bits_per_byte(loss, bytes_per_target),
      **values,
    }
