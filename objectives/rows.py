"""Raw rows one at a time, their segments, and packed rows made of pieces. R tokens of a row, P pieces."""

from collections.abc import Callable, Sequence

import numpy as np

from objectives.prediction import IGNORED

Row = dict[str, np.ndarray]


def each(rows: Row, seeds: np.ndarray, example: Callable[[Row, np.random.Generator], Row]) -> Row:
  """The examples of rows [B, R] from `example(row, rng)` of each one alone, with the chance of its own seed."""
  made = [
    example({name: values[i] for name, values in rows.items()}, np.random.default_rng(seed))
    for i, seed in enumerate(seeds)
  ]
  return {name: np.stack([one[name] for one in made]) for name in made[0]}


def runs(ids_R: np.ndarray) -> np.ndarray:
  """Where runs of equal ids other than 0 begin and end: int64 [P, 2]. Of segment ids they are the segments."""
  starts = np.flatnonzero(np.diff(ids_R, prepend=0))
  found = np.stack([starts, np.append(starts, len(ids_R))[1:]], axis=1)
  return found[ids_R[starts] != 0]


def packed(pieces: Sequence[np.ndarray], length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Pieces side by side: tokens, segment ids (piece i is segment i + 1) and positions, int32 [length] each.

  Raises:
    ValueError: they are longer than the row.
  """
  sizes = [len(piece) for piece in pieces]
  used = sum(sizes)
  if used > length:
    raise ValueError(f'pieces of {used} tokens do not fit into a row of {length}')
  tokens, segment_ids, positions = np.zeros((3, length), np.int32)
  if used:
    tokens[:used] = np.concatenate(pieces)
    segment_ids[:used] = np.repeat(np.arange(1, len(pieces) + 1), sizes)
    positions[:used] = np.concatenate([np.arange(size) for size in sizes])
  return tokens, segment_ids, positions


def source_to_target(
  sources: Sequence[np.ndarray], targets: Sequence[np.ndarray], source_length: int, target_length: int, start_id: int
) -> Row:
  """A row for an encoder-decoder: target i belongs to source i; an empty one is not predicted."""
  names = ('tokens', 'segment_ids', 'positions')
  source = zip((f'source_{name}' for name in names), packed(sources, source_length), strict=True)
  labels, segment_ids, positions = packed(targets, target_length)
  inputs = np.where(positions == 0, np.int32(start_id), np.roll(labels, 1))
  return dict(source) | {
    'tokens': np.where(segment_ids > 0, inputs, np.int32(0)),
    'segment_ids': segment_ids,
    'positions': positions,
    'labels': np.where(segment_ids > 0, labels, np.int32(IGNORED)),
  }
