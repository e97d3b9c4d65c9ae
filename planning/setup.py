"""What a plan needs of a config and training takes from data: sizes that the tokenizer decides, shapes of a batch."""

import dataclasses
import functools
import types

import jax
import numpy as np

import objectives
import parallel
from data.tokenizers.bytes import BytesTokenizer
from training import configs, program, resolution
from training.state import TrainState


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
  """What is the same for every layout of a config.

  Attributes:
    config: resolved.
    model: its pure functions.
    task: what is trained.
    state: TrainState of ShapeDtypeStructs.
    row: the arrays of one row of a batch.
  """

  config: object
  model: object
  task: objectives.Task
  state: TrainState
  row: dict[str, jax.ShapeDtypeStruct]

  @classmethod
  def of(cls, config) -> 'Problem':
    """Of a resolved config. Raises ValueError where model, objective or optimizer are inconsistent."""
    alone = configs.from_json(configs.to_json(config)).unlock()
    alone.mesh.update({axis: 1 for axis in parallel.AXES}, sequence_parallel=False, slices=1)
    built = program.build(alone, epoch_steps=1.0, devices=jax.devices('cpu')[:1])
    return cls(config, built.model, built.task, built.abstract_state, _row(config))

  @functools.cached_property
  def parameters(self) -> list:
    """(array, logical axes, whether it is trained) of every parameter."""
    leaves = lambda tree: jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, tuple))
    trees = self.state.params, self.task.logical_axes, self.task.trainable
    return list(zip(*map(leaves, trees), strict=True))


def resolve(config):
  """The config with derived sizes filled in, without reading data.

  Where `model.vocab_size` follows the tokenizer, `data.vocab_size` stands for it, the size that it is asked for.
  """
  tokenizer = types.SimpleNamespace(
    vocab_size=config.model.vocab_size or config.data.vocab_size, special=types.SimpleNamespace(start_id=0)
  )
  return resolution.resolve(config, tokenizer)


def batch_shapes(row: dict, rows: int, shardings: dict | None = None) -> dict[str, jax.ShapeDtypeStruct]:
  """The arrays of a batch of so many rows, with shardings or without."""
  return {
    name: jax.ShapeDtypeStruct(
      (rows, *leaf.shape[1:]), leaf.dtype, sharding=None if shardings is None else shardings[name]
    )
    for name, leaf in row.items()
  }


def _row(config) -> dict:
  """What the objective makes of one row of bytes."""
  length = config.data.sequence_length
  special = BytesTokenizer().reserving(objectives.reserved(config.objective)).special
  objective = objectives.create(config.objective, special)
  rows = _raw_rows(objective.row_length(length), special.eos_id)
  if config.data.corpus == 'pairs':
    sources = rows
    rows = _raw_rows(config.data.target_length or length, special.eos_id)
    rows |= {f'source_{name}': values for name, values in sources.items()}
  one = objective.examples(rows, np.zeros((1, 3), np.int64))
  return {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in one.items()}


def _raw_rows(length, eos_id):
  tokens = np.full((1, length), ord('a'), np.int32)
  tokens[0, 0] = eos_id
  return {
    'tokens': tokens,
    'segment_ids': np.ones((1, length), np.int32),
    'positions': np.arange(length, dtype=np.int32)[None],
  }
