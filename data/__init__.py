"""From raw text to packed batches; imports no jax."""

from data.augmentation import augmented
from data.dataset import Dataset, Split, pair_split, prepare, text_split
from data.packing import Batch
from data.pipeline import Batches, eval_batches, train_batches

__all__ = [
  'Batch',
  'Batches',
  'Dataset',
  'Split',
  'augmented',
  'eval_batches',
  'pair_split',
  'prepare',
  'text_split',
  'train_batches',
]
