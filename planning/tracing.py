"""What the forward pass keeps for the backward pass, read off the loss itself: traced, not compiled."""

import dataclasses
import math

import jax

import model as model_lib
import objectives
import precision
from pallas_kernels import Device, target
from planning import setup, topology

_ROWS = 1009  # of the traced batch: a prime that no size of a model is a multiple of


@dataclasses.dataclass(frozen=True)
class Kept:
  """Residuals of a loss whose size grows with the rows of the batch.

  Attributes:
    arrays: bytes a row, and the sizes of the dimensions besides those of rows, of each.
  """

  arrays: tuple[tuple[int, tuple[int, ...]], ...]

  def row_bytes(self, splits: dict[int, int] | None = None) -> float:
    """Bytes of one row, where dimensions of a size in `splits` are split into so many parts, one of each array."""
    total = 0.0
    for size, dimensions in self.arrays:
      parts = max([(splits or {}).get(dimension, 1) for dimension in dimensions], default=1)
      total += size / parts
    return total


def trace(problem: setup.Problem, remat: str, where: topology.Topology) -> Kept:
  """Traces the loss of a problem and its derivative, as if on one device of the topology, with another remat."""
  accelerator, config = where.accelerator, problem.config
  model_config = config.model.copy_and_resolve_references()
  with model_config.unlocked():
    model_config.remat = remat
  objective = objectives.create(config.objective)
  loss = precision.apply(config.precision, objective.loss(model_lib.create(model_config)))
  key = jax.random.key(0) if max(model_config.dropout_rate, model_config.attention.dropout_rate) > 0 else None

  def residuals(params, batch):
    of_trained = lambda trained: loss(objectives.merge(trained, params), batch, key)
    return jax.vjp(of_trained, problem.task.trained(params), has_aux=True)[1]

  batch = setup.batch_shapes(problem.row, _ROWS)
  params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), problem.state.params)
  with target(Device('tpu' if accelerator.torus else 'gpu', accelerator.kinds[0])):
    leaves = jax.tree.leaves(jax.eval_shape(residuals, params, batch))
  arrays = []
  for leaf in leaves:
    others = tuple(size for size in leaf.shape if size % _ROWS)
    if len(others) < len(leaf.shape):
      arrays.append((math.prod(leaf.shape) * leaf.dtype.itemsize // _ROWS, others))
  return Kept(tuple(arrays))
