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

# When a search ends, by the names of transformers: False, once the finished texts, as many as there are beams, are all
# better than the best running beam is now; True, once there are as many; 'never', once no running beam can still win.
EARLY_STOPPING = {False: 0, True: 1, 'never': 2}
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
  scores_BxN: jax.Array  # of the best finished continuations; -inf = none yet
  length: jax.Array  # tokens of every running beam
  done_B: jax.Array


class Limits(NamedTuple):
  """Where beams end and how they compare."""

  max_new_tokens: jax.Array | int
  length_penalty: jax.Array | float  # score = logprob / length ** length_penalty: above 0 favours long texts
  repetition_penalty: jax.Array | float | None  # None = off
  early_stopping: jax.Array | int = EARLY_STOPPING['never']


def search(
  model, params, prompts: decode.Prompts, vocabulary: decode.Vocabulary, num_beams: int, limits: Limits
) -> Best:
  """Beam search as in Hugging Face transformers.

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
    jnp.full((rows, num_beams), -jnp.inf),
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
  ended = jnp.where(finished & ~state.done_B[:, None], top, -jnp.inf)
  best = _better(state.best, ended, texts, length, limits)
  scores_BxN = jnp.concatenate([state.scores_BxN, _score(ended, length, limits)], axis=1)
  scores_BxN = jax.lax.top_k(scores_BxN, num_beams)[0]

  logprobs_BxN, running = jax.lax.top_k(jnp.where(ends, -jnp.inf, top), num_beams)
  chosen = lambda values: jnp.take_along_axis(values, running, axis=1)
  parents_BxN, tokens_BxN = chosen(parents), chosen(tokens)
  parents_R = (parents_BxN + num_beams * jnp.arange(rows)[:, None]).reshape(-1)
  cache = jax.tree.map(lambda leaf: leaf[parents_R] if leaf.ndim else leaf, state.cache)
  seen_BxNxV = state.seen_BxNxV
  if seen_BxNxV is not None:
    seen_BxNxV = jnp.take_along_axis(seen_BxNxV, parents_BxN[..., None], axis=1)
    seen_BxNxV = seen_BxNxV | jax.nn.one_hot(tokens_BxN, vocab, dtype=bool)

  # Log-probabilities only fall, so with 'never' this is the highest score that a running beam can still reach.
  is_exact, worst_B = limits.early_stopping == EARLY_STOPPING['never'], scores_BxN[:, -1]
  final_length = jnp.where(is_exact & (limits.length_penalty > 0), limits.max_new_tokens, length)
  is_beaten_B = jnp.where(is_exact, best.score_B, worst_B) >= _score(logprobs_BxN[:, 0], final_length, limits)
  are_enough_B = (limits.early_stopping == EARLY_STOPPING[True]) & (worst_B > -jnp.inf)
  done_B = state.done_B | (length == limits.max_new_tokens) | is_beaten_B | are_enough_B
  return State(
    cache,
    logprobs_BxN,
    jnp.take_along_axis(texts, running[..., None], axis=1),
    state.position_R + 1,
    seen_BxNxV,
    best,
    scores_BxN,
    length,
    done_B,
  )


def _logprobs(state, logits_RxV, vocabulary, limits):
  logprobs_RxV = jax.nn.log_softmax(sampling_lib.mask_padding(logits_RxV, vocabulary.size))
  if state.seen_BxNxV is not None:
    seen_RxV = state.seen_BxNxV.reshape(logprobs_RxV.shape)
    logprobs_RxV = sampling_lib.penalize_repetition(logprobs_RxV, seen_RxV, limits.repetition_penalty)
  # A token that must come costs nothing.
  forced = decode.forced_token(vocabulary, state.length, limits.max_new_tokens)
  only_RxV = jnp.where(jnp.arange(logprobs_RxV.shape[-1]) == forced, 0.0, -jnp.inf)
  logprobs_RxV = jnp.where(forced >= 0, only_RxV, logprobs_RxV)
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
