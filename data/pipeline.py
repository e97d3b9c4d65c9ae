"""Batches: an endless stream for training whose position can be saved, and one pass for evaluation.

grain delivers and prefetches them. What batch n holds is a function of n alone: which component each of its rows comes
from, and which of the component's rows, in an order of its own for each of the component's epochs. So the position of
the stream is one number, and continuing from it is exact.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Self

import numpy as np

from data import augmentation
from data.dataset import Dataset, Split
from data.packing import Batch, Rows, build

_PREFETCHED = 4  # batches


# From raw rows [rows, row_length], see `packing.build`, and int64 [rows, 3] of (seed, epoch, row id) to a batch.
Examples = Callable[[Batch, np.ndarray], Batch]


def raw(rows: Batch, seeds: np.ndarray) -> Batch:
  """The rows themselves."""
  del seeds
  return rows


def build_rows(split: Split, rows: Rows, ids: np.ndarray) -> Batch:
  """The raw rows `ids` of a split, see `packing.build`; those of pairs have their sources beside them, `source_...`."""
  batch = build(rows, ids, split.stream)
  if rows.source is None:
    return batch
  source = build(rows.source, ids, split.source.stream)
  return batch | {f'source_{name}': values for name, values in source.items()}


def train_batches(
  dataset: Dataset,
  rows: int,
  seed: int,
  examples: Examples = raw,
  random_crop: bool = False,
  own_rows: np.ndarray | None = None,
) -> 'Batches':
  """An endless iterator over batches of `rows` rows, in an order that follows from `seed`.

  `examples` makes the batch of raw rows, in the iterator's own thread. The numbers it gets for each row do not depend
  on how many rows a batch has. `random_crop` takes pieces of long documents from random places, see
  `augmentation.crop`. Of each batch only the rows `own_rows` are read and made, those of one process of several; None:
  all.
  """
  return Batches(dataset, rows, seed, examples, random_crop, own_rows)


class Batches:
  """Iterator over training batches, see `train_batches`."""

  def __init__(
    self,
    dataset: Dataset,
    rows: int,
    seed: int,
    examples: Examples = raw,
    random_crop: bool = False,
    own_rows: np.ndarray | None = None,
  ):
    import grain  # here, because it imports jax, which processes that only encode text can do without

    if rows < 1:
      raise ValueError(f'a batch of {rows} rows is empty; data.batch_tokens must be at least data.sequence_length')
    joined = Rows.concatenate(dataset.rows)
    order = _Order(dataset, rows, seed)

    def build_batch(item):
      ids, epochs = item if own_rows is None else (part[own_rows] for part in item)
      seeds = np.stack([np.full_like(ids, seed), epochs, ids], axis=1)
      if not random_crop:
        return examples(build_rows(dataset.train, joined, ids), seeds)
      cropped = augmentation.crop(joined, ids, seeds, dataset.train.boundaries)
      return examples(build_rows(dataset.train, cropped, np.arange(len(ids))), seeds)

    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=_PREFETCHED)
    self._iterator = iter(grain.MapDataset.source(order).map(build_batch).to_iter_dataset(options))
    self._made_of = {'data': dataset.fingerprint, 'rows': rows, 'seed': seed}
    self._rows_per_epoch = len(joined)
    self._rows = rows

  def __iter__(self) -> Self:
    return self

  def __next__(self) -> Batch:
    return next(self._iterator)

  @property
  def epoch(self) -> float:
    """Rows delivered so far over the rows of one pass over all training documents."""
    return self._iterator.get_state()['next_index'] * self._rows / self._rows_per_epoch

  def get_state(self) -> dict:
    """The position in the stream and what the stream is made of, as JSON can hold it."""
    return {**self._made_of, 'position': self._iterator.get_state()}

  def set_state(self, state: dict) -> None:
    """Continues from `state`: the next batches are those that followed it.

    Raises:
      ValueError: the state was saved by a stream of other batches.
    """
    for name, told in (
      ('data', 'the documents, the tokenizer, the sequence length, the packing or the weights of a mixture'),
      ('rows', 'data.batch_tokens'),
      ('seed', 'the seed'),
    ):
      if state[name] != self._made_of[name]:
        raise ValueError(
          f'the saved position belongs to other batches, so it cannot be continued: {told} changed '
          f'({name} was {state[name]} and is {self._made_of[name]}). Change it back, or start in a new --workdir.'
        )
    self._iterator.set_state(state['position'])

  def close(self) -> None:
    """Ends the prefetching thread."""
    self._iterator.close()


class _Order:
  """Source for grain: item n is the rows of batch n, as indices into the rows of all components together, and the
  epoch, of its component, that each of them belongs to."""

  def __init__(self, dataset: Dataset, rows: int, seed: int):
    self._rows = rows
    self._seed = seed
    self._sizes = [len(part) for part in dataset.rows]
    self._starts = np.cumsum([0, *self._sizes])
    self._frequencies = row_frequencies(dataset.rows, dataset.weights)
    self._epoch_order = functools.lru_cache(2 * len(self._sizes))(self._shuffle)

  def __len__(self) -> int:
    return 2**48  # grain wants a length; no run gets here

  def __getitem__(self, step: int) -> tuple[np.ndarray, np.ndarray]:
    components, numbers = interleave(self._frequencies, step * self._rows, (step + 1) * self._rows)
    ids, epochs = np.empty((2, self._rows), np.int64)
    for component in np.unique(components):
      chosen = np.flatnonzero(components == component)
      epochs[chosen], within = np.divmod(numbers[chosen], self._sizes[component])
      for epoch in np.unique(epochs[chosen]):
        now = epochs[chosen] == epoch
        ids[chosen[now]] = self._epoch_order(int(component), int(epoch))[within[now]]
    return ids, epochs

  def _shuffle(self, component: int, epoch: int) -> np.ndarray:
    rng = np.random.default_rng([self._seed, component, epoch])
    return self._starts[component] + rng.permutation(self._sizes[component])


def row_frequencies(rows: tuple[Rows, ...], weights: tuple[float, ...]) -> np.ndarray:
  """How often each component gives a row, so that the targets it delivers over its epochs have the share `weights`."""
  frequencies = np.array([weight * len(part) / part.num_targets for part, weight in zip(rows, weights, strict=True)])
  return frequencies / frequencies.sum()


def interleave(frequencies: np.ndarray, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
  """Elements `start` to `stop` of the fairest sequence in which component i occurs `frequencies[i]` of the time.

  The k-th element of component i (from 0) is due at time (k + 1/2) / frequencies[i]; the sequence is sorted by that,
  so at every point each component is within about one element of its share.

  Args:
    frequencies: float [components], summing to 1.

  Returns:
    (components, numbers): int64 [stop - start] each, element `numbers[j]` of component `components[j]`.
  """
  spare = len(frequencies) + 1
  first = np.maximum(0, np.floor((start - spare) * frequencies + 0.5)).astype(np.int64)  # due before start - spare
  last = np.ceil((stop + spare) * frequencies).astype(np.int64) + 1
  components = np.repeat(np.arange(len(frequencies)), last - first)
  numbers = np.concatenate([np.arange(a, b) for a, b in zip(first, last, strict=True)])
  order = np.lexsort((components, (numbers + 0.5) / frequencies[components]))
  wanted = order[start - first.sum() : stop - first.sum()]
  return components[wanted], numbers[wanted]


def eval_batches(
  split: Split,
  row_length: int,
  rows: int,
  packing: str,
  max_batches: int = 0,
  examples: Examples = raw,
  target_length: int = 0,
  own_rows: np.ndarray | None = None,
) -> Iterator[Batch]:
  """Batches over the whole of `split`, each target once, always the same; the last one is padded with segment 0.

  Args:
    split: what to evaluate on.
    row_length: tokens of a row.
    rows: of a batch.
    packing: documents | none.
    max_batches: stop after so many; 0 = the whole split. The rows are shuffled, so the first batches are a fair sample.
    examples: makes the batch of raw rows; it always gets the seed and the epoch 0.
    target_length: of pairs, tokens of a row of targets; 0 = `row_length`, which is that of the sources.
    own_rows: those of each batch that are made; None: all.
  """
  packed = split.pack(row_length, packing, target_length)
  order = np.random.default_rng(0).permutation(len(packed))
  order = np.concatenate([order, np.full(-len(order) % rows, -1)]).reshape(-1, rows)
  for ids in order[: max_batches or None]:
    ids = ids if own_rows is None else ids[own_rows]
    nothing = np.zeros_like(ids)
    yield examples(build_rows(split, packed, ids), np.stack([nothing, nothing, np.maximum(ids, 0)], axis=1))
