"""Scores that follow from a mean cross-entropy."""

import math


def perplexity(loss: float) -> float:
  """e^loss; infinite where a float cannot hold it."""
  return math.exp(loss) if loss < 700 else math.inf


def bits_per_byte(loss: float, bytes_per_target: float) -> float:
  """Bits to code one byte of the original text, so that tokenizers compare.

  Args:
    loss: nats a predicted token.
    bytes_per_target: UTF-8 bytes of the original text for each token predicted.
  """
  return loss / math.log(2) / bytes_per_target
