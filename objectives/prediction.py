"""What objectives that predict tokens share: the loss, its metrics, and what is reported of them. B rows, L tokens."""

import dataclasses

import jax
import jax.numpy as jnp

from model import Metric, Stream
from objectives import summary
from objectives.auxiliary import auxiliary_loss
from parallel import axes as ax

IGNORED = -1
TOKENS = (ax.BATCH, ax.LENGTH)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenPrediction:
  """The base of objectives whose loss is a cross-entropy over the vocabulary; see `Objective`.

  Attributes:
    label_smoothing: probability spread evenly over the vocabulary.
    z_loss: weight of log(Z)^2.
    special: special tokens of the tokenizer, as `data.tokenizers.Special`; None where no examples are made.
  """

  label_smoothing: float = 0.0
  z_loss: float = 0.0
  special: object = None

  generates = True
  codes_text = False  # whether the loss is that of the text itself, token by token: then bits per byte make sense

  @classmethod
  def from_config(cls, objective_config, special=None):
    return cls(**cls.settings(objective_config), special=special)

  @classmethod
  def settings(cls, objective_config) -> dict:
    """The values of the config that every such objective has."""
    return {'label_smoothing': objective_config.label_smoothing, 'z_loss': objective_config.z_loss}

  @classmethod
  def reserved(cls, objective_config) -> tuple[str, ...]:
    return ()

  def generator(self, model):
    return model

  def mean(self, model, params, hidden_BxLxD, labels_BxL, layer_metrics):
    """The mean over labels that count, label smoothing, z-loss and auxiliary losses of layers included.

    Metrics are of plain cross-entropy (`loss`, in nats) and of the most probable token (`accuracy`), and the layers'.
    """
    result = model.cross_entropy(params, hidden_BxLxD, labels_BxL, self.label_smoothing, self.z_loss)
    counted = labels_BxL != IGNORED
    tokens = jnp.sum(counted, dtype=jnp.float32)
    correct = jnp.sum(result.correct & counted, dtype=jnp.float32)
    metrics = {'loss': Metric(jnp.sum(result.nll), tokens), 'accuracy': Metric(correct, tokens), **layer_metrics}
    mean = result.total / jnp.maximum(tokens, 1.0) + auxiliary_loss(layer_metrics)
    return mean, jax.lax.stop_gradient(metrics)

  def summarize(self, metrics, bytes_per_target):
    """The means, and of the loss perplexity and, where it is that of the text, bits per byte."""
    values = {name: metric.value for name, metric in metrics.items()}
    loss = values.pop('loss')
    coded = {'bits_per_byte': summary.bits_per_byte(loss, bytes_per_target)} if self.codes_text else {}
    return {'loss': loss, 'perplexity': summary.perplexity(loss), 'accuracy': values.pop('accuracy'), **coded, **values}


def stream(batch, side: str = '') -> Stream:
  """What a model reads of a batch; `side` is the beginning of the names of its arrays."""
  return Stream(batch[f'{side}tokens'], batch[f'{side}positions'], batch[f'{side}segment_ids'], batch.get('order'))


def need(special, found, objective_name: str, what: str) -> None:
  """Refuses a vocabulary without the tokens that an objective needs; one that is not known yet (None) is not judged.

  Raises:
    ValueError: `special` is a vocabulary but what was found in it is nothing.
  """
  if special is not None and not found and found != 0:
    raise ValueError(
      f'objective.name={objective_name} needs {what} in the vocabulary, and the tokenizer has none; give one that has '
      'it with --config.data.tokenizer_path=FILE, or train one, which reserves it: '
      '--config.data.tokenizer=sentencepiece-bpe'
    )
