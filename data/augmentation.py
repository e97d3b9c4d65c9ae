"""Augmentation of training rows, seeded as examples are: by (seed, epoch, row id) of each row alone."""

import dataclasses
from collections.abc import Callable

import numpy as np

from data.packing import Rows

MASK = '[MASK]'
# Behind a row's own numbers, so that its chance is not that of its example.
_TOKENS, _CROP = 1, 2


def check(data_config) -> None:
  """Raises ValueError where shares are more than 1 together, or there are no documents to crop."""
  augmentation_config = data_config.augmentation
  dropout, replacement = augmentation_config.token_dropout, augmentation_config.token_replacement
  if dropout + replacement > 1:
    raise ValueError(
      f'data.augmentation.token_dropout={dropout} and data.augmentation.token_replacement={replacement} are more than '
      '1 together; lower one'
    )
  if augmentation_config.random_crop and (data_config.packing != 'documents' or data_config.corpus == 'pairs'):
    raise ValueError(
      'data.augmentation.random_crop cuts documents, which data.packing=none does not know and pairs must not be; '
      'set data.packing=documents with another corpus, or data.augmentation.random_crop=False'
    )


def reserved(augmentation_config) -> tuple[str, ...]:
  """Names of the special tokens that a tokenizer trained for this has."""
  return (MASK,) if augmentation_config.token_dropout else ()


def augmented(examples: Callable, augmentation_config, special) -> Callable:
  """`examples(rows, seeds)` with some ordinary tokens of the inputs dropped or replaced; labels stay what they are.

  Args:
    examples: an objective's.
    augmentation_config: `token_dropout` is the share that becomes the mask token (Bowman et al. 2016, word dropout),
      `token_replacement` the share that becomes a random token. Both 0: `examples` itself.
    special: the vocabulary's, see `data.tokenizers.Special`.

  Raises:
    ValueError: tokens are to be dropped, and the vocabulary has no mask token.
  """
  dropout, replacement = augmentation_config.token_dropout, augmentation_config.token_replacement
  if not dropout + replacement:
    return examples
  if dropout and special.mask_id is None:
    raise ValueError(
      f'data.augmentation.token_dropout={dropout} needs a mask token, [MASK] or <mask>, which the tokenizer lacks; '
      'give a file that has it, or train one: --config.data.tokenizer=sentencepiece-bpe'
    )

  def noisy(tokens_L, rng):
    draws_L = rng.random(len(tokens_L))
    random_L = rng.choice(special.ordinary_ids, len(tokens_L))
    other_L = np.where(draws_L < dropout, special.mask_id if dropout else 0, random_L)
    changed_L = (draws_L < dropout + replacement) & special.ordinary[tokens_L]
    return np.where(changed_L, other_L, tokens_L).astype(np.int32)

  def with_noise(rows, seeds):
    batch = examples(rows, seeds)
    generators = [np.random.default_rng([*seed, _TOKENS]) for seed in seeds]
    for name in ('source_tokens', 'tokens'):
      if name in batch:
        batch[name] = np.stack([noisy(*row) for row in zip(batch[name], generators, strict=True)])
    return batch

  return with_noise


def crop(rows: Rows, ids: np.ndarray, seeds: np.ndarray, boundaries: np.ndarray) -> Rows:
  """The rows `ids` [B], with each piece that is not a whole document taken from a random place of its document.

  Args:
    rows: all rows.
    ids: int [B], at least 0.
    seeds: int64 [B, 3], (seed, epoch, row id).
    boundaries: of the documents in the stream, see `packing.pack`.
  """
  counts = rows.offsets[ids + 1] - rows.offsets[ids]
  pieces = np.concatenate([np.arange(rows.offsets[i], rows.offsets[i + 1]) for i in ids])
  starts, lengths = rows.starts[pieces], rows.lengths[pieces]
  document = np.searchsorted(boundaries, starts, side='right') - 1
  first, last = boundaries[document], boundaries[document + 1]
  draws = np.concatenate(
    [np.random.default_rng([*seed, _CROP]).random(count) for seed, count in zip(seeds, counts, strict=True)]
  )
  moved = first + (draws * (last - first + 2 - lengths)).astype(np.int64)
  return dataclasses.replace(
    rows, starts=moved, lengths=lengths, offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
  )
