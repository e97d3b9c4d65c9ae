"""Scores of a model on held-out text."""

from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np

import data
import objectives
from model import metrics as metrics_lib
from training import resolution


def batches(
  config, split: data.Split, special, max_batches: int = 0, own_rows: np.ndarray | None = None
) -> Iterator[data.Batch]:
  """One pass over a split in the examples and batch size of a config.

  Args:
    config: the whole config.
    split: the text.
    special: of the tokenizer, see `data.tokenizers.Special`.
    max_batches: 0 = all of it.
    own_rows: those of each batch that this process has; None: all.
  """
  objective = objectives.create(config.objective, resolution.special_tokens(config, special))
  return data.eval_batches(
    split,
    objective.row_length(config.data.sequence_length),
    config.data.batch_tokens // config.data.sequence_length,
    config.data.packing,
    max_batches,
    objective.examples,
    config.data.target_length,
    own_rows,
  )


def evaluate(eval_step: Callable, params, batches: Iterable, summarize: Callable) -> dict[str, float]:
  """Averages over all that counts in all batches.

  Args:
    eval_step: `eval_step(params, batch) -> metrics`, those of an objective's loss.
    params: parameters.
    batches: at least one batch.
    summarize: from metrics to what is reported: the objective's, with the bytes a target of this text.

  Returns:
    What `summarize` makes of the metrics of all batches, and `tokens` (counted).

  Raises:
    ValueError: there is nothing to evaluate on.
  """
  # Dispatched one ahead of the one that is read, so that the device does not wait for the host.
  totals, pending = {}, {}
  for batch in batches:
    metrics = eval_step(params, batch)
    totals = metrics_lib.add(totals, _on_host(pending))
    pending = metrics
  totals = metrics_lib.add(totals, _on_host(pending))
  if not totals or not totals['loss'].weight:
    raise ValueError('there is no token to evaluate on: the text is empty')
  return {**summarize(totals), 'tokens': int(totals['loss'].weight)}


def _on_host(metrics):
  return jax.tree.map(float, jax.device_get(metrics))
