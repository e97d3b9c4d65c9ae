"""Random spans in a row. S spans, P stretches of tokens that may be covered."""

import bisect

import numpy as np


def sizes(rng: np.random.Generator, total: int, count: int) -> np.ndarray:
  """`count` positive whole numbers that sum to `total`, every choice of them as probable as any: the spans of T5."""
  cuts = np.sort(rng.choice(total - 1, count - 1, replace=False)) + 1 if count > 1 else []
  return np.diff([0, *cuts, total])


def place(rng: np.random.Generator, stretches_Px2: np.ndarray, sizes) -> np.ndarray:
  """Spans of given sizes at random places within stretches, no two of one stretch side by side.

  The longest is placed first. A span that no stretch has room for is cut in two; what does not fit at all, since every
  stretch is full, is left out.

  Args:
    rng: chance.
    stretches_Px2: int, where each begins and ends, apart from each other and in order.
    sizes: int [S], positive.

  Returns:
    int64 [S, 2], where each span begins and ends, in order; with one stretch every arrangement is as probable as any.
  """
  room = stretches_Px2[:, 1] - stretches_Px2[:, 0]
  held = [[] for _ in room]
  waiting = sorted(int(size) for size in sizes)
  while waiting and (largest := int(room.max(initial=0))) > 0:
    size = waiting.pop()
    if size > largest:
      bisect.insort(waiting, size - largest)
      size = largest
    places = np.cumsum(np.maximum(room - size + 1, 0))
    chosen = int(np.searchsorted(places, rng.integers(places[-1]), side='right'))
    held[chosen].append(size)
    room[chosen] -= size + 1  # and the token that keeps the next one apart
  found = []
  for (start, stop), own in zip(stretches_Px2, held, strict=True):
    if own:
      own = rng.permutation(own)
      free = stop - start - own.sum() + 1
      starts = start + np.sort(rng.choice(free, len(own), replace=False)) + np.cumsum(own) - own
      found.append(np.stack([starts, starts + own], axis=1))
  return np.concatenate(found) if found else np.zeros((0, 2), np.int64)


def fewest(stretches_Px2: np.ndarray, total: int) -> np.ndarray:
  """The fewest spans that cover `total` tokens: the longest stretches whole, and the beginning of one more."""
  longest_first = stretches_Px2[np.argsort(stretches_Px2[:, 0] - stretches_Px2[:, 1], kind='stable')]
  covered = np.cumsum(longest_first[:, 1] - longest_first[:, 0])
  stops = longest_first[:, 1] - np.maximum(covered - total, 0)
  found = np.stack([longest_first[:, 0], stops], axis=1)
  found = found[found[:, 1] > found[:, 0]]
  return found[np.argsort(found[:, 0])]
