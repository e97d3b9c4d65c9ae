"""Numbers that add up: over repeats of a layer, microbatches, devices and batches."""

import dataclasses
from collections.abc import Callable
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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sums:
  """What a layer sums over its rows for metrics that are not such sums themselves, beside its metrics.

  Attributes:
    values: pytree of float32 arrays, to be added up over all the rows that the layer sees, in however many parts.
    finish: `finish(values) -> Metrics`; hashable, and equal for all repeats of a layer.
  """

  values: dict
  finish: Callable = dataclasses.field(metadata={'static': True})


def add(first: Metrics, second: Metrics) -> Metrics:
  """The metrics of both: those of one name are added."""
  return {**first, **second} | {
    name: Metric(*(a + b for a, b in zip(first[name], second[name]))) for name in first if name in second
  }


def finished(metrics: dict[str, Metric | Sums]) -> Metrics:
  """The metrics of one layer that has seen all rows."""
  done = {name: metric for name, metric in metrics.items() if not isinstance(metric, Sums)}
  for sums in (metric for metric in metrics.values() if isinstance(metric, Sums)):
    done = add(done, sums.finish(sums.values))
  return done


def of_repeats(stacked: dict[str, Metric | Sums]) -> Metrics:
  """Those of layers that have seen all rows, stacked on a leading axis, added up."""
  return jax.tree.map(lambda values: values.sum(axis=0), jax.vmap(finished)(stacked)) if stacked else {}
