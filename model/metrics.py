"""Numbers that add up: over repeats of a layer, microbatches, devices and batches."""

from typing import NamedTuple

import jax


class Metric(NamedTuple):
  """A mean whose parts can still be added; everything that is reported of a run is one.

  Attributes:
    total: float32 scalar, the sum of what is averaged.
    weight: float32 scalar, over how many; 1 for what is a value by itself.
  """

  total: jax.Array | float
  weight: jax.Array | float

  @property
  def value(self):
    """The mean on the host, 0 where there is nothing to average."""
    return float(self.total) / float(self.weight) if self.weight else 0.0


Metrics = dict[str, Metric]


def add(first: Metrics, second: Metrics) -> Metrics:
  """The metrics of both: those of one name are added."""
  return {**first, **second} | {
    name: Metric(*(a + b for a, b in zip(first[name], second[name]))) for name in first if name in second
  }


def summed(stacked: Metrics) -> Metrics:
  """Metrics stacked on a leading axis, added up."""
  return jax.tree.map(lambda values: values.sum(axis=0), stacked)
