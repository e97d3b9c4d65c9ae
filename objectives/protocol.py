"""What an objective is. B rows, R tokens of a raw row, L of what the model sees."""

from collections.abc import Callable
from typing import Protocol, Self

import numpy as np

from model import Metric

Rows = dict[str, np.ndarray]


class Objective(Protocol):
  """From raw rows to examples, on the host, and from a model to a loss of examples.

  Attributes:
    batch_axes: logical axes of each array of a batch, the first of which is the batch's: ('batch', 'length') of tokens,
      ('batch',) of one label a row.
    generates: whether a model that is trained for it continues a text.
  """

  batch_axes: dict[str, tuple[str, ...]]
  generates: bool

  @classmethod
  def from_config(cls, objective_config, special=None) -> Self:
    """The objective with the values of the config's group `objective`, for a vocabulary; see `objectives.create`."""

  @classmethod
  def reserved(cls, objective_config) -> tuple[str, ...]:
    """Names of the special tokens it needs, in the order that their ids have where a tokenizer is trained."""

  def row_length(self, sequence_length: int) -> int:
    """The tokens that a raw row holds for the model to see `sequence_length` of them, an encoder-decoder as source."""

  def examples(self, rows: Rows, seeds: np.ndarray) -> Rows:
    """The batch that raw rows become; numpy only.

    Args:
      rows: int32 [B, R] `tokens`, `segment_ids` (0 = padding) and `positions`; of pairs those are of the targets, and
        `source_tokens`, ... of the sources. Nothing that is read of one segment depends on another.
      seeds: int64 [B, 3], (seed, epoch, row id) of each row. All chance comes from a row's own three numbers, so that
        it is the same whatever the batch, the mesh or the number of hosts.

    Returns:
      An array for each entry of `batch_axes`.
    """

  def loss(self, model) -> Callable:
    """`loss(params, batch, rng) -> (mean, metrics)` of a model.

    The mean is what is minimised. `metrics['loss']` is there always, and its weight is the number that the mean is
    over: microbatches are weighted by it. `rng` is a PRNG key for dropout, or None.
    """

  def generator(self, model):
    """The model as it continues texts; not called where `generates` is False."""

  def summarize(self, metrics: dict[str, Metric], bytes_per_target: float) -> dict[str, float]:
    """What is reported of metrics that were added up over any part of the data.

    Args:
      metrics: those of `loss` with numbers, maybe with others.
      bytes_per_target: UTF-8 bytes of the original text for each token predicted.
    """
