"""Fill-in: the most probable tokens at the masks of a text. B texts, L tokens, V vocabulary, M masks."""

import dataclasses
import functools
import re
from collections.abc import Sequence

import jax
import numpy as np

from inference import decode
from model import Stream, Visibility

_MASK = re.compile(r'\[MASK\]|<mask>')  # what a user may type, whatever the vocabulary calls it


@dataclasses.dataclass(frozen=True)
class Fill:
  """A token for a mask.

  Attributes:
    text: as it reads, without the space before it.
    token: its id.
    probability: under the model, given the text with all of its masks.
  """

  text: str
  token: int
  probability: float


def fill(run, texts: Sequence[str], *, top_k: int = 5) -> list[list[list[Fill]]]:
  """The most probable tokens at each [MASK] (or <mask>) of each text; several masks are filled independently.

  Args:
    run: has `model`, `params` and `tokenizer`, as `training.load_run` returns; of a model that was trained with
      objective.name=masked.
    texts: each with at least one mask.
    top_k: tokens a mask.

  Returns:
    For each text, for each of its masks, `top_k` fills, the most probable first. Only tokens that are text count.

  Raises:
    ValueError: a text has no mask or is too long, the vocabulary has no mask token, or `top_k` is not positive.
  """
  special = run.tokenizer.special
  if special.mask_id is None:
    raise ValueError('the vocabulary has no mask token, [MASK] or <mask>: train with objective.name=masked')
  if not 0 < top_k <= len(special.ordinary_ids):
    raise ValueError(f'top_k is {top_k}; it must be from 1 to {len(special.ordinary_ids)}, the tokens of text')
  ids = [_encode(run.tokenizer, text) for text in texts]
  if ids and max(map(len, ids)) > run.model.length_limit:
    raise ValueError(
      f'a text has {max(map(len, ids))} tokens, more than the {run.model.length_limit} positions that the model '
      'learned: shorten it'
    )
  return [_fills(run, special, row, top_k) for row in ids]


def _encode(tokenizer, text: str) -> np.ndarray:
  """A text as in training, between the marks of a document, with the mask token in the place of masks."""
  special = tokenizer.special
  parts = _MASK.split(text)
  if len(parts) == 1:
    raise ValueError(f'the text {text[:40]!r} has no mask; write [MASK] where a token is to be filled in')
  # A token for a whole word has the space before it, where a vocabulary writes words so.
  spaced = any(len(piece) > 1 and piece[:1] == b' ' for piece in tokenizer.pieces)
  parts = [part.removesuffix(' ') if spaced else part for part in parts[:-1]] + parts[-1:]
  ids = [np.array([special.opening_id])]
  for part in parts:
    ids += [tokenizer.encode(part), np.array([special.mask_id])]
  return np.concatenate([*ids[:-1], [special.eos_id]]).astype(np.int32)


def _fills(run, special, ids_L, top_k) -> list[list[Fill]]:
  length = max(decode.MIN_PROMPT_SLOTS, decode.power_of_two(len(ids_L)))
  length = int(min(length, run.model.length_limit))
  tokens_1xL = np.zeros((1, length), np.int32)
  tokens_1xL[0, : len(ids_L)] = ids_L
  places_M = np.flatnonzero(ids_L == special.mask_id)
  positions_1xL = np.arange(length, dtype=np.int32)[None]
  stream = Stream(tokens_1xL, positions_1xL, (positions_1xL < len(ids_L)).astype(np.int32))
  hidden_1xMxD = _hidden(run.model, run.params, stream)[:, places_M]
  logits_MxV = np.asarray(run.model.logits(run.params, hidden_1xMxD), np.float64)[0][:, special.ordinary_ids]
  probabilities_MxV = np.exp(logits_MxV - logits_MxV.max(axis=1, keepdims=True))
  probabilities_MxV /= probabilities_MxV.sum(axis=1, keepdims=True)
  best_MxK = np.argsort(-probabilities_MxV, axis=1, kind='stable')[:, :top_k]
  return [
    [_fill(run.tokenizer, int(special.ordinary_ids[i]), float(probability_V[i])) for i in best_K]
    for best_K, probability_V in zip(best_MxK, probabilities_MxV, strict=True)
  ]


def _fill(tokenizer, token, probability) -> Fill:
  text = tokenizer.decode([token])
  return Fill(text if text == ' ' else text.removeprefix(' '), token, probability)


@functools.partial(jax.jit, static_argnames='model')
def _hidden(model, params, stream):
  return model.hidden(params, stream, None, Visibility.BIDIRECTIONAL)[0]
