"""How many parameters a model has, of which kind."""

import dataclasses
import math
from collections.abc import Iterable


@dataclasses.dataclass(frozen=True)
class Parameters:
  """Numbers of parameters.

  Attributes:
    total: all; tied weights count once.
    embedding: tables of tokens, positions and types, and a head of its own: what Kaplan et al. 2020 leave out.
    active: those that a token passes: of experts as many as it chooses, of everything else all.
  """

  total: int
  embedding: int
  active: int

  @property
  def non_embedding(self) -> int:
    return self.total - self.embedding


def count(
  leaves: Iterable[tuple[tuple[int, ...], tuple[str | None, ...]]], num_experts: int = 0, experts_per_token: int = 0
) -> Parameters:
  """Counts the arrays of a model.

  Args:
    leaves: shape and logical axes of each array: 'vocab' and 'length' name the rows of tables, 'experts' stacks the
      weights of experts.
    num_experts: of a layer that has some.
    experts_per_token: of them that a token passes.
  """
  total = embedding = active = 0
  for shape, axes in leaves:
    size = math.prod(shape)
    total += size
    if axes[:1] and axes[0] in ('vocab', 'length') and len(axes) > 1:
      embedding += size
    active += size * experts_per_token // num_experts if 'experts' in axes and num_experts else size
  return Parameters(total, embedding, active)
