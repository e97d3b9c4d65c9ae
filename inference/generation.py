"""From prompts in words to continuations in words."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from inference import beam, decode
from inference.sampling import Sampling
from model import Stream

MAX_ROWS = 32  # sequences decoded at a time; more prompts are served one batch after the other


@dataclasses.dataclass(frozen=True)
class Generation:
  """A continuation.

  Attributes:
    prompt: the text that was continued, or of an encoder-decoder the source.
    text: the continuation alone; prompt + text reads as one where it is no source.
    tokens: its ids, without the end-of-text mark.
    finished: the model ended it, not the limit on new tokens.
    logprob: its log-probability under the model in nats, the end included; temperature and truncation do not change
      it. Of beam search with a repetition penalty: after the penalty.
  """

  prompt: str
  text: str
  tokens: list[int]
  finished: bool
  logprob: float


@dataclasses.dataclass(frozen=True)
class _Request:
  """What is decoded: token ids, their index among all prompts, and how."""

  decoder: object
  params: dict
  vocabulary: decode.Vocabulary
  prompts: list[list[int]]
  max_new_tokens: int
  are_sources: bool


def generate(
  run,
  prompts: Sequence[str],
  *,
  max_new_tokens: int = 64,
  temperature: float = 1.0,
  top_k: int = 0,
  top_p: float = 1.0,
  min_p: float = 0.0,
  repetition_penalty: float = 1.0,
  num_beams: int = 1,
  length_penalty: float = 1.0,
  early_stopping: bool | str = False,
  seed: int = 0,
  stop_at_eos: bool = True,
  on_tokens: Callable[[int, list[int]], None] | None = None,
) -> list[Generation]:
  """Continues each prompt, an empty one begins a new document; or writes the target of each source.

  Args:
    run: has `decoder` (see `precision.Decoder`), `decoding_params` (of its `unstacked`) and `tokenizer`, as
      `training.load_run` returns; of an encoder-decoder also `config`.
    prompts: texts; of an encoder-decoder sources.
    max_new_tokens: tokens a continuation at most.
    temperature: logits are divided by it; 0 = always the most probable token.
    top_k: sample from this many most probable tokens; 0 = off.
    top_p: sample from the fewest most probable tokens that have this probability together; 1 = off.
    min_p: sample from tokens at least this many times as probable as the most probable one; 0 = off.
    repetition_penalty: above 1 makes tokens of the prompt and of the continuation less probable; 1 = off.
    num_beams: above 1, beam search with this many beams; it does not sample.
    length_penalty: beams are compared by log-probability / length ** length_penalty, EOS included in the length.
    early_stopping: when beam search ends, see `beam.EARLY_STOPPING`: False, True or 'never'.
    seed: of the draws. Those for a prompt depend on the seed and its place in the list, not on the other prompts.
    stop_at_eos: end a continuation where the model ends the document.
    on_tokens: called with the index of a prompt and its next token ids as they come. Not with beam search, which
      knows no token before the last.

  Returns:
    A Generation for each prompt, in order.

  Raises:
    ValueError: an argument is out of range, or prompt and new tokens are longer than the positions the model learned;
      or the model is an encoder, which does not generate.
  """
  _check(prompts, max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty, num_beams, seed, on_tokens)
  if early_stopping not in beam.EARLY_STOPPING:
    raise ValueError(f"early_stopping is {early_stopping!r}; it must be False, True or 'never'")
  request = _request(run, prompts, max_new_tokens, stop_at_eos)
  penalty = None if repetition_penalty == 1.0 else repetition_penalty
  if num_beams > 1:
    limits = beam.Limits(max_new_tokens, length_penalty, penalty, beam.EARLY_STOPPING[early_stopping])
    results = _beam_search(request, num_beams, limits)
  else:
    sampling = (
      Sampling(repetition_penalty=penalty)
      if temperature == 0
      else Sampling(temperature, top_k or None, top_p if top_p < 1 else None, min_p or None, penalty)
    )
    results = _sample(request, sampling, seed, on_tokens or (lambda index, tokens: None))
  before = [[] if request.are_sources else prompt for prompt in request.prompts]
  return [
    _generation(run.tokenizer, prompt, before[i], request.vocabulary.eos_id, *results[i])
    for i, prompt in enumerate(prompts)
  ]


def sample_texts(config, decoder, params, tokenizer, prompts: Sequence[str]) -> list[str]:
  """Continuations at temperature 0.8 as texts, for samples during training; they end where learned positions do."""
  read = [[0]] if config.model.family == 'encoder_decoder' else _encode(tokenizer, prompts)
  max_new_tokens = min(config.train.sample_tokens, max(1, _room(decoder, read)))
  generations = generate(
    _Run(decoder, decoder.unstacked(params, Stream.of_one_token()), tokenizer, config),
    prompts,
    max_new_tokens=max_new_tokens,
    temperature=0.8,
    seed=config.seed,
  )
  return [generation.text for generation in generations]


@dataclasses.dataclass(frozen=True)
class _Run:
  decoder: object
  decoding_params: dict
  tokenizer: object
  config: object


def _request(run, prompts, max_new_tokens, stop_at_eos) -> _Request:
  """What is decoded for texts. Raises ValueError where the model does not generate, or has no positions for so many."""
  tokenizer, model_config = run.tokenizer, run.decoder.model.config
  if model_config.family == 'encoder':
    raise ValueError(
      "model.family='encoder' does not generate text; fill masks with generate.py --fill='The [MASK] sat'"
    )
  are_sources = model_config.family == 'encoder_decoder'
  if are_sources:
    ids = _encode_sources(tokenizer, prompts, run.config.objective.name == 'denoising')
  else:
    ids = _encode(tokenizer, prompts)
  longest, limit = max(map(len, ids), default=0), run.decoder.length_limit
  if are_sources and longest > limit:
    raise ValueError(
      f'the longest source has {longest} tokens, with the marks around it, more than the {limit} positions that the '
      'model learned: shorten it'
    )
  if max_new_tokens > (room := _room(run.decoder, [[0]] if are_sources else ids)):
    advice = f'ask for at most {room} new tokens' if room > 0 else 'shorten it'
    before = (
      'the token with which a target starts is one'
      if are_sources
      else f'the longest prompt has {longest} tokens, with the mark that begins a document'
    )
    raise ValueError(
      f'{before}; {max_new_tokens} new ones do not fit into the {limit} positions that the model learned: {advice}'
    )
  vocabulary = decode.Vocabulary(
    tokenizer.vocab_size,
    tokenizer.eos_id if stop_at_eos else -1,
    model_config.forced_first_token,
    model_config.forced_last_token if stop_at_eos else -1,
  )
  return _Request(run.decoder, run.decoding_params, vocabulary, ids, max_new_tokens, are_sources)


def _batches(request, rows) -> Iterator[tuple[list[int], decode.Prompts]]:
  """Prompts of like length together, and the number of rows a power of two, so that few shapes are compiled."""
  prompts = request.prompts
  order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
  for start in range(0, len(order), rows):
    indices = order[start : start + rows]
    yield indices, decode.pad([prompts[i] for i in indices], decode.power_of_two(len(indices)), request.are_sources)


def _sample(request, sampling, seed, on_tokens) -> dict[int, tuple[list[int], float]]:
  results = {i: ([], 0.0) for i in range(len(request.prompts))}
  base_key = jax.random.key(seed)
  for indices, batch in _batches(request, MAX_ROWS):
    rows = len(batch.lengths_B)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(
      base_key, np.array(indices + [0] * (rows - len(indices)), np.uint32)
    )
    active = np.arange(rows) < len(indices)
    for chunk in decode.decode(
      request.decoder, request.params, batch, sampling, request.vocabulary, keys, active, request.max_new_tokens
    ):
      for row, index in enumerate(indices):
        new = [int(token) for token in chunk.tokens_BxC[row] if token >= 0]
        tokens, logprob = results[index]
        results[index] = tokens + new, logprob + float(chunk.logprobs_BxC[row].sum(dtype=np.float64))
        if new:
          on_tokens(index, new)
  return results


def _beam_search(request, num_beams, limits) -> dict[int, tuple[list[int], float]]:
  results = {}
  for indices, batch in _batches(request, max(1, MAX_ROWS // num_beams)):
    best = beam.search(request.decoder, request.params, batch, request.vocabulary, num_beams, limits)
    for row, index in enumerate(indices):
      results[index] = best.tokens_BxT[row, : best.length_B[row]].tolist(), float(best.logprob_B[row])
  return results


def _generation(tokenizer, prompt, prompt_ids, eos_id, tokens, logprob):
  finished = tokens[-1] == eos_id
  tokens = tokens[:-1] if finished else tokens
  # Decoded behind the prompt, because a tokenizer may drop the space that begins a text.
  text = tokenizer.decode(prompt_ids + tokens)[len(tokenizer.decode(prompt_ids)) :]
  return Generation(prompt, text, tokens, finished, logprob)


def _check(prompts, max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty, num_beams, seed, on_tokens):
  if isinstance(prompts, str):
    raise ValueError(f'prompts is one text, {prompts[:20]!r}; give a list of texts, even of one')
  rules = [
    ('max_new_tokens', max_new_tokens, max_new_tokens >= 1, 'at least 1'),
    ('temperature', temperature, 0 <= temperature < math.inf, 'at least 0; 0 is greedy'),
    ('top_k', top_k, top_k >= 0, 'at least 0; 0 switches it off'),
    ('top_p', top_p, 0 < top_p <= 1, 'above 0 and at most 1; 1 switches it off'),
    ('min_p', min_p, 0 <= min_p <= 1, 'between 0, which switches it off, and 1'),
    ('repetition_penalty', repetition_penalty, 0 < repetition_penalty < math.inf, 'above 0; 1 switches it off'),
    ('num_beams', num_beams, num_beams >= 1, 'at least 1; 1 is no beam search'),
    ('seed', seed, 0 <= seed < 2**32, 'at least 0 and below 2^32'),
  ]
  for name, value, valid, allowed in rules:
    if not valid:
      raise ValueError(f'{name} is {value}; it must be {allowed}')
  if num_beams > 1 and (temperature not in (0, 1) or top_k or top_p < 1 or min_p):
    raise ValueError(
      f'num_beams is {num_beams}, but beam search does not sample: leave out temperature, top_k, top_p '
      'and min_p, or use num_beams=1'
    )
  if num_beams > 1 and on_tokens is not None:
    raise ValueError(f'num_beams is {num_beams}, but beam search knows no token before the last: leave out on_tokens')


def _encode(tokenizer, prompts) -> list[list[int]]:
  # Documents begin with EOS in training: it tells the model that nothing stands before the prompt.
  return [[tokenizer.eos_id, *map(int, tokenizer.encode(prompt))] for prompt in prompts]


def _encode_sources(tokenizer, sources, opened) -> list[list[int]]:
  # As in training: a denoising objective opens the text that the encoder reads.
  opening = [tokenizer.special.opening_id] if opened else []
  return [[*opening, *map(int, tokenizer.encode(source)), tokenizer.eos_id] for source in sources]


def _room(model, prompts: list[list[int]]) -> int | float:
  """New tokens that fit behind the longest prompt; the last one is never read, so it needs no position."""
  return model.length_limit - max(map(len, prompts), default=1) + 1
