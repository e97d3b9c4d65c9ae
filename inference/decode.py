"""Prefill and sampled decoding with a key-value cache.

Shapes: B rows, P prompt slots, S cache slots, V vocabulary, C tokens a call. Prompts are padded on the left with
segment 0, so that every row writes the same cache slot and its next token comes from the last one.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from inference import sampling as sampling_lib
from model import Stream

CHUNK = 8  # tokens a call: dispatch costs little beside them, and a terminal still shows text as it comes
MIN_PROMPT_SLOTS = 16
NEW_SLOTS = 64  # room for new tokens is a multiple of this


class Prompts(NamedTuple):
  """Prompts of unequal length as one batch."""

  tokens_BxP: np.ndarray
  positions_BxP: np.ndarray
  segment_ids_BxP: np.ndarray
  lengths_B: np.ndarray
  are_sources: np.ndarray | bool = False  # what an encoder reads: the text that is generated does not go on from it

  @property
  def stream(self) -> Stream:
    """The prompts as a model reads them."""
    return Stream(self.tokens_BxP, self.positions_BxP, self.segment_ids_BxP)


class Vocabulary(NamedTuple):
  """Which ids are tokens, and which one ends a text."""

  size: jax.Array | int
  eos_id: jax.Array | int  # -1 = none: generate up to the limit
  first_id: jax.Array | int = -1  # the first token whatever the model says; -1 = none
  last_id: jax.Array | int = -1  # the same, of the last token that the limit allows


class Chunk(NamedTuple):
  """The next tokens of each row; -1 where the row had ended before."""

  tokens_BxC: np.ndarray
  logprobs_BxC: np.ndarray  # nats, under the model itself, before temperature and truncation


class State(NamedTuple):
  """What one step hands to the next."""

  cache: object  # the model's own
  token_B: jax.Array  # chosen, not yet seen by the model
  position_B: jax.Array  # of `token_B`
  active_B: jax.Array
  seen_BxV: jax.Array | None  # for the repetition penalty
  step: jax.Array  # tokens chosen so far


def pad(prompts: Sequence[Sequence[int]], rows: int, are_sources: bool = False) -> Prompts:
  """Left-pads prompts to a power of two, so that few lengths are compiled; missing rows repeat the first prompt.

  Args:
    prompts: at least one list of token ids, none empty.
    rows: at least `len(prompts)`.
    are_sources: see `Prompts`.
  """
  prompts = list(prompts) + [prompts[0]] * (rows - len(prompts))
  lengths_B = np.array([len(prompt) for prompt in prompts], np.int32)
  slots = max(MIN_PROMPT_SLOTS, power_of_two(lengths_B.max()))
  positions_BxP = np.arange(slots, dtype=np.int32) - (slots - lengths_B[:, None])
  tokens_BxP = np.zeros_like(positions_BxP)
  tokens_BxP[positions_BxP >= 0] = np.concatenate(prompts)
  return Prompts(
    tokens_BxP, np.maximum(positions_BxP, 0), (positions_BxP >= 0).astype(np.int32), lengths_B, are_sources
  )


def power_of_two(number: int) -> int:
  """The smallest power of two that is at least `number`, which is positive."""
  return 1 << int(number - 1).bit_length()


def cache_slots(prompt_slots: int, max_new_tokens: int) -> int:
  """Cache slots for prompts of `prompt_slots` and what follows them, rounded up so that few sizes are compiled."""
  return prompt_slots + -(-max_new_tokens // NEW_SLOTS) * NEW_SLOTS


def decode(
  model,
  params,
  prompts: Prompts,
  sampling: sampling_lib.Sampling,
  vocabulary: Vocabulary,
  keys_B: jax.Array,
  active_B: np.ndarray,
  max_new_tokens: int,
) -> Iterator[Chunk]:
  """Yields new tokens, the first one alone as soon as the prompts are read, then up to `CHUNK` at a time.

  Args:
    model, params: anything hashable with `prefill` and `extend`, such as `model.decoder.Decoder`; parameters from its
      `unstacked` spare slicing them at every token.
    prompts: from `pad`.
    sampling: how tokens are chosen.
    vocabulary: ids that are tokens.
    keys_B: a jax.random key a row. A row's draws depend on its key alone, not on the rows beside it.
    active_B: bool; rows that are False generate nothing.
    max_new_tokens: tokens a row at most; it stops earlier when every row has ended.
  """
  slots = cache_slots(prompts.tokens_BxP.shape[1], max_new_tokens)
  state, chunk = _start(model, params, prompts, sampling, vocabulary, keys_B, active_B, slots, max_new_tokens)
  yield Chunk(*map(np.asarray, chunk))
  produced = 1
  while produced < max_new_tokens and np.any(state.active_B):
    steps = min(CHUNK, max_new_tokens - produced)
    state, chunk = _advance(model, params, state, sampling, vocabulary, keys_B, steps, max_new_tokens)
    yield Chunk(*(np.asarray(values)[:, :steps] for values in chunk))
    produced += steps


@functools.partial(jax.jit, static_argnames=('model', 'slots'))
def _start(model, params, prompts, sampling, vocabulary, keys_B, active_B, slots, limit):
  logits_BxV, cache = model.prefill(params, prompts.stream, slots)
  seen_BxV = None
  if sampling.repetition_penalty is not None:
    seen_BxV = seen_tokens(prompts, logits_BxV.shape[-1])
  state = State(
    cache, jnp.zeros_like(prompts.lengths_B), prompts.lengths_B - 1, active_B, seen_BxV, jnp.zeros((), jnp.int32)
  )
  state, token_B, logprob_B = _choose(logits_BxV, state, sampling, vocabulary, keys_B, limit)
  return state, Chunk(token_B[:, None], logprob_B[:, None])


@functools.partial(jax.jit, static_argnames='model', donate_argnames='state')
def _advance(model, params, state, sampling, vocabulary, keys_B, steps, limit):
  rows = len(state.token_B)
  chunk = Chunk(jnp.full((rows, CHUNK), -1, jnp.int32), jnp.zeros((rows, CHUNK), jnp.float32))

  def unfinished(carry):
    state, _, i = carry
    return (i < steps) & jnp.any(state.active_B)

  def step(carry):
    state, chunk, i = carry
    logits_BxV, cache = model.extend(params, state.cache, state.token_B, state.position_B)
    state, *chosen = _choose(logits_BxV, state._replace(cache=cache), sampling, vocabulary, keys_B, limit)
    chunk = Chunk(*(values.at[:, i].set(new) for values, new in zip(chunk, chosen, strict=True)))
    return state, chunk, i + 1

  state, chunk, _ = jax.lax.while_loop(unfinished, step, (state, chunk, 0))
  return state, chunk


def _choose(logits_BxV, state, sampling, vocabulary, keys_B, limit):
  logits_BxV = sampling_lib.mask_padding(logits_BxV, vocabulary.size)
  keys_B = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys_B, state.step)
  token_B = sampling_lib.sample(logits_BxV, sampling, keys_B, state.seen_BxV)
  forced = forced_token(vocabulary, state.step, limit)
  token_B = jnp.where(forced >= 0, forced, token_B)
  logprob_B = jnp.take_along_axis(jax.nn.log_softmax(logits_BxV), token_B[:, None], axis=-1)[:, 0]
  seen_BxV = state.seen_BxV
  if seen_BxV is not None:
    seen_BxV = seen_BxV.at[jnp.arange(len(token_B)), token_B].set(True)
  active_B = state.active_B
  state = State(
    state.cache, token_B, state.position_B + 1, active_B & (token_B != vocabulary.eos_id), seen_BxV, state.step + 1
  )
  return state, jnp.where(active_B, token_B, -1), jnp.where(active_B, logprob_B, 0.0)


def forced_token(vocabulary: Vocabulary, step, limit):
  """The token that must be number `step`, counted from 0, of at most `limit`; -1 = any."""
  first = jnp.where(step == 0, vocabulary.first_id, -1)
  return jnp.where((step == limit - 1) & (vocabulary.last_id >= 0), vocabulary.last_id, first)


def seen_tokens(prompts: Prompts, vocab_size: int) -> jax.Array:
  """bool `[B, vocab_size]`: tokens of each prompt. The mark before its first token is no text and does not count, nor
  does a source."""
  rows_Bx1 = jnp.arange(len(prompts.tokens_BxP))[:, None]
  counted_BxP = (prompts.segment_ids_BxP != 0) & (prompts.positions_BxP > 0) & ~jnp.asarray(prompts.are_sources)
  empty = jnp.zeros((len(prompts.tokens_BxP), vocab_size), bool)
  return empty.at[rows_Bx1, prompts.tokens_BxP].max(counted_BxP)
