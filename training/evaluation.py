"""Scores of a model on held-out text."""

import math
from collections.abc import Callable, Iterable, Iterator

import jax

import data
import objectives


def batches(config, split: data.Split, max_batches: int = 0) -> Iterator[data.Batch]:
  """One pass over a split in the rows and batch size of a config; `max_batches` 0 = all of it."""
  return data.eval_batches(split, objectives.row_length(config.objective, config.data.sequence_length),
                           config.data.batch_tokens // config.data.sequence_length, config.data.packing, max_batches)


def evaluate(eval_step: Callable, params, batches: Iterable, bytes_per_target: float) -> dict[str, float]:
  """Averages over all counted tokens of all batches.

  Args:
    eval_step: `eval_step(params, batch) -> sums`, with the sums of an objective: `loss` in nats, `tokens`, `correct`.
    params: parameters.
    batches: at least one batch.
    bytes_per_target: UTF-8 bytes of the original text for each token predicted.

  Returns:
    `loss` (nats a token), `perplexity`, `accuracy`, `bits_per_byte`, `tokens` (counted).

  Raises:
    ValueError: there is nothing to evaluate on.
  """
  # Dispatched one ahead of the one that is read, so that the device does not wait for the host.
  totals, pending = {}, None
  for batch in batches:
    sums = eval_step(params, batch)
    _add(totals, pending)
    pending = sums
  _add(totals, pending)
  if not totals.get('tokens'):
    raise ValueError('there is no token to evaluate on: the text is empty')
  loss = totals['loss'] / totals['tokens']
  return {'loss': loss, 'perplexity': perplexity(loss), 'accuracy': totals['correct'] / totals['tokens'],
          'bits_per_byte': bits_per_byte(loss, bytes_per_target), 'tokens': int(totals['tokens'])}


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


def _add(totals: dict, sums) -> None:
  for name, value in jax.device_get(sums or {}).items():
    totals[name] = totals.get(name, 0.0) + float(value)
