"""Beam search: the most probable continuation among those that a fixed number of running beams can find.

Shapes: B prompts, N beams, R = B N rows of the cache, V vocabulary, T new tokens at most.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from inference import decode
from inference import sampling as sampling_lib

CHUNK = 32  # tokens a call; between calls the program can be interrupted


class Best(NamedTuple):
  """The best finished continuation of each prompt."""

  score_B: jax.Array  # logprob / length ** length_penalty; -inf = none yet
  logprob_B: jax.Array  # nats
  length_B: jax.Array
  tokens_BxT: jax.Array


class State(NamedTuple):
  """What one step hands to the next; beams are sorted by their log-probability."""

  cache: object  # the model's own
  logprobs_BxN: jax.Array
  tokens_BxNxT: jax.Array
  position_R: jax.Array  # of each beam's last token
  seen_BxNxV: jax.Array | None
  best: Best
  length: jax.Array  # tokens of every running beam
  done_B: jax.Array


class Limits(NamedTuple):
  """Where beams end and how they compare."""

  max_new_tokens: jax.Array | int
  length_penalty: jax.Array | float  # score = logprob / length ** length_penalty: above 0 favours long texts
  repetition_penalty: jax.Array | float | None  # None = off


def search(
  model, params, prompts: decode.Prompts, vocabulary: decode.Vocabulary, num_beams: int, limits: Limits
) -> Best:
  """Beam search as in Hugging Face transformers, ended as soon as no running beam can still win.

  At each step the 2 N best extensions are ranked; those among the first N that end with EOS are finished, and the
  N best others run on. At `limits.max_new_tokens` the running beams count as finished.

  Args:
    model, params: as for `decode.decode`.
    prompts: from `decode.pad`.
    vocabulary: ids that are tokens.
    num_beams: running beams a prompt.
    limits: see `Limits`. The repetition penalty acts on log-probabilities, as in transformers.

  Returns:
    numpy arrays; a row of `tokens_BxT` holds `length_B` tokens, EOS included.
  """
  slots = decode.cache_slots(prompts.tokens_BxP.shape[1], limits.max_new_tokens)
  state = _start(model, params, prompts, vocabulary, num_beams, limits, slots)
  while not np.all(state.done_B):
    state = _advance(model, params, state, vocabulary, limits)
  return Best(*map(np.asarray, state.best))


@functools.partial(jax.jit, static_argnames=('model', 'num_beams', 'slots'))
def _start(model, params, prompts, vocabulary, num_beams, limits, slots):
  rows, prompt_slots = prompts.tokens_BxP.shape
  logits_BxV, cache = model.prefill(params, prompts.stream, slots)
  repeat = lambda values: jnp.repeat(values, num_beams, axis=0)
  seen_BxNxV = None
  if limits.repetition_penalty is not None:
    seen_BxNxV = repeat(decode.seen_tokens(prompts, logits_BxV.shape[-1])).reshape(rows, num_beams, -1)
  # All beams of a prompt are equal at first: only one of them may be extended.
  logprobs_BxN = jnp.where(jnp.arange(num_beams) == 0, jnp.zeros((rows, 1)), -jnp.inf)
  new_slots = slots - prompt_slots
  best = Best(
    jnp.full(rows, -jnp.inf),
    jnp.full(rows, -jnp.inf),
    jnp.zeros(rows, jnp.int32),
    jnp.zeros((rows, new_slots), jnp.int32),
  )
  state = State(
    jax.tree.map(lambda leaf: repeat(leaf) if leaf.ndim else leaf, cache),
    logprobs_BxN,
    jnp.zeros((rows, num_beams, new_slots), jnp.int32),
    repeat(prompts.lengths_B) - 1,
    seen_BxNxV,
    best,
    jnp.zeros((), jnp.int32),
    jnp.zeros(rows, bool),
  )
  return _extend(state, repeat(logits_BxV), vocabulary, limits)


@functools.partial(jax.jit, static_argnames='model', donate_argnames='state')
def _advance(model, params, state, vocabulary, limits):
  last = state.length + CHUNK

  def step(state):
    token_R = jnp.take(state.tokens_BxNxT, state.length - 1, axis=-1).reshape(-1)
    logits_RxV, cache = model.extend(params, state.cache, token_R, state.position_R)
    return _extend(state._replace(cache=cache), logits_RxV, vocabulary, limits)

  return jax.lax.while_loop(lambda state: (state.length < last) & ~jnp.all(state.done_B), step, state)


def _extend(state, logits_RxV, vocabulary, limits):
  rows, num_beams = state.logprobs_BxN.shape
  totals_BxNxV = state.logprobs_BxN[..., None] + _logprobs(state, logits_RxV, vocabulary, limits)
  vocab = totals_BxNxV.shape[-1]
  top, index = jax.lax.top_k(totals_BxNxV.reshape(rows, -1), 2 * num_beams)
  parents, tokens = index // vocab, index % vocab
  length = state.length + 1
  texts = jnp.take_along_axis(state.tokens_BxNxT, parents[..., None], axis=1)
  texts = jax.lax.dynamic_update_index_in_dim(texts, tokens, state.length, axis=-1)

  ends = tokens == vocabulary.eos_id
  finished = (ends | (length == limits.max_new_tokens)) & (jnp.arange(2 * num_beams) < num_beams)
  best = _better(state.best, jnp.where(finished & ~state.done_B[:, None], top, -jnp.inf), texts, length, limits)

  logprobs_BxN, running = jax.lax.top_k(jnp.where(ends, -jnp.inf, top), num_beams)
  chosen = lambda values: jnp.take_along_axis(values, running, axis=1)
  parents_BxN, tokens_BxN = chosen(parents), chosen(tokens)
  parents_R = (parents_BxN + num_beams * jnp.arange(rows)[:, None]).reshape(-1)
  cache = jax.tree.map(lambda leaf: leaf[parents_R] if leaf.ndim else leaf, state.cache)
  seen_BxNxV = state.seen_BxNxV
  if seen_BxNxV is not None:
    seen_BxNxV = jnp.take_along_axis(seen_BxNxV, parents_BxN[..., None], axis=1)
    seen_BxNxV = seen_BxNxV | jax.nn.one_hot(tokens_BxN, vocab, dtype=bool)

  # Log-probabilities only fall, so this is the highest score that a running beam can still reach.
  final_length = jnp.where(limits.length_penalty > 0, limits.max_new_tokens, length + 1)
  bound_B = _score(logprobs_BxN[:, 0], final_length, limits)
  done_B = state.done_B | (length == limits.max_new_tokens) | (best.score_B >= bound_B)
  return State(
    cache,
    logprobs_BxN,
    jnp.take_along_axis(texts, running[..., None], axis=1),
    state.position_R + 1,
    seen_BxNxV,
    best,
    length,
    done_B,
  )


def _logprobs(state, logits_RxV, vocabulary, limits):
  logprobs_RxV = jax.nn.log_softmax(sampling_lib.mask_padding(logits_RxV, vocabulary.size))
  if state.seen_BxNxV is not None:
    seen_RxV = state.seen_BxNxV.reshape(logprobs_RxV.shape)
    logprobs_RxV = sampling_lib.penalize_repetition(logprobs_RxV, seen_RxV, limits.repetition_penalty)
  return logprobs_RxV.reshape(*state.logprobs_BxN.shape, -1)


def _score(logprob, length, limits):
  return logprob / jnp.asarray(length, jnp.float32) ** limits.length_penalty


def _better(best, logprobs, texts, length, limits):
  scores = _score(logprobs, length, limits)
  candidate = jnp.argmax(scores, axis=1)
  pick = lambda values: jnp.take_along_axis(values, candidate.reshape(-1, *[1] * (values.ndim - 1)), axis=1)[:, 0]
  won = pick(scores) > best.score_B
  new = Best(pick(scores), pick(logprobs), jnp.full_like(best.length_B, length), pick(texts))
  return jax.tree.map(lambda old, new: jnp.where(won.reshape(-1, *[1] * (new.ndim - 1)), new, old), best, new)
