"""What a model reads: tokens with their places, and the rule of who sees whom. B batch, L length."""

import dataclasses
import enum

import jax
import numpy as np


class Visibility(enum.Enum):
  """Which earlier or later tokens of its own segment a token sees.

  CAUSAL: those up to itself. BIDIRECTIONAL: all. PREFIX and ORDER: those whose `Stream.order` is at most its own; in a
  prefix-LM that is 0 in the prefix and the position behind it, which is how it goes on when it generates; in a
  permutation LM, which does not generate, the rank of each token (Yang et al. 2019).
  """

  CAUSAL = 'causal'
  BIDIRECTIONAL = 'bidirectional'
  PREFIX = 'prefix'
  ORDER = 'order'


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Stream:
  """Tokens side by side in rows.

  Attributes:
    tokens: int32 [B, L].
    positions: int32 [B, L], the place of each token in its document.
    segment_ids: int32 [B, L]; tokens see their own segment only; 0 is padding, seen by nobody.
    order: int32 [B, L] where the visibility goes by it, else None.
    token_types: int32 [B, L], below `model.token_types`; None = all of type 0, or none where attention compares them.
  """

  tokens: jax.Array
  positions: jax.Array
  segment_ids: jax.Array
  order: jax.Array | None = None
  token_types: jax.Array | None = None

  @classmethod
  def of_one_token(cls):
    """A row of one token: enough to trace what a model does with its parameters."""
    one = np.ones((1, 1), np.int32)
    return cls(one, 0 * one, one)
