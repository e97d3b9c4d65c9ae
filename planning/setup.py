"""What a plan needs of a config and training takes from data: sizes that the tokenizer decides, shapes of a batch."""

import types

import jax
import numpy as np

import objectives
from data.tokenizers.bytes import BytesTokenizer
from training import resolution


def resolve(config):
  """The config with derived sizes filled in, without reading data.

  Where `model.vocab_size` follows the tokenizer, `data.vocab_size` stands for it, the size that it is asked for.
  """
  tokenizer = types.SimpleNamespace(
    vocab_size=config.model.vocab_size or config.data.vocab_size, special=types.SimpleNamespace(start_id=0)
  )
  return resolution.resolve(config, tokenizer)


def batch_shapes(config, shardings: dict | None = None) -> dict[str, jax.ShapeDtypeStruct]:
  """The arrays of a batch of the config's objective: those of one row of bytes, as often as a batch has rows.

  Args:
    config: the whole config.
    shardings: of each array; None: not said.
  """
  length = config.data.sequence_length
  special = BytesTokenizer().reserving(objectives.reserved(config.objective)).special
  objective = objectives.create(config.objective, special)
  rows = _raw_rows(objective.row_length(length), special.eos_id)
  if config.data.corpus == 'pairs':
    sources = rows
    rows = _raw_rows(config.data.target_length or length, special.eos_id)
    rows |= {f'source_{name}': values for name, values in sources.items()}
  one = objective.examples(rows, np.zeros((1, 3), np.int64))
  count = config.data.batch_tokens // length
  return {
    name: jax.ShapeDtypeStruct(
      (count, *array.shape[1:]), array.dtype, sharding=None if shardings is None else shardings[name]
    )
    for name, array in one.items()
  }


def _raw_rows(length, eos_id):
  tokens = np.full((1, length), ord('a'), np.int32)
  tokens[0, 0] = eos_id
  return {
    'tokens': tokens,
    'segment_ids': np.ones((1, length), np.int32),
    'positions': np.arange(length, dtype=np.int32)[None],
  }
