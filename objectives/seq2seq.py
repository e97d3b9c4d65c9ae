"""From a source to its target, in pairs. B rows, S source and T target slots of a row."""

import dataclasses

import numpy as np

from objectives.prediction import IGNORED
from objectives.source_to_target import SourceToTarget


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seq2Seq(SourceToTarget):
  """The target of each pair, predicted from its source (Sutskever et al. 2014); of data.corpus=pairs.

  Both end with the mark that ends a document.
  """

  def row_length(self, sequence_length: int) -> int:
    return sequence_length

  def examples(self, rows, seeds):
    """Adds the labels to rows of both sides, and shifts the decoder's inputs; int32 [B, S] and [B, T]."""
    del seeds
    tokens_BxT, used_BxT = rows['tokens'], rows['segment_ids'] > 0
    shifted_BxT = np.where(rows['positions'] == 0, np.int32(self.special.start_id), np.roll(tokens_BxT, 1, axis=1))
    return rows | {
      'tokens': np.where(used_BxT, shifted_BxT, np.int32(0)),
      'labels': np.where(used_BxT, tokens_BxT, np.int32(IGNORED)),
    }
