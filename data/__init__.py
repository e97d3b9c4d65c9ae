"""From raw text to packed batches; imports no jax."""

from data.dataset import Dataset, Split, prepare, text_split
from data.packing import Batch
from data.pipeline import Batches, eval_batches, train_batches

__all__ = ['Batch', 'Batches', 'Dataset', 'Split', 'eval_batches', 'prepare', 'text_split', 'train_batches']
