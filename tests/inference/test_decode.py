"""Decoding with a cache against the model's full forward pass."""

import ast
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import model as model_lib
from configs import base
from inference import decode
from inference.sampling import Sampling
from model import Stream

VOCAB, LENGTH = 50, 48
GREEDY = Sampling()
PROMPTS = [[1, 5, 9, 2, 30, 31, 7, 11, 13, 40, 41, 42, 3, 3, 3, 17, 20, 19], [1, 8], [1], [1, 30, 31, 5, 22]]
VARIANTS = {
  'multi_head_rope': {'num_layers': 2},
  'grouped_query': {'num_kv_heads': 2},
  'multi_query': {'num_kv_heads': 1, 'attention': {'qk_norm': True}},
  'learned': {'positions': 'learned', 'max_length': 64, 'norm': 'layernorm', 'use_bias': True, 'gated_mlp': False},
  'sinusoidal_post_norm': {'positions': 'sinusoidal', 'norm_position': 'post'},
  'no_positions_untied': {'positions': 'none', 'tie_embeddings': False},
}


def tiny_model(**changes):
  return _tiny_model(repr(changes))


@functools.cache
def _tiny_model(changes):
  model_config = base.get_config().model
  with model_config.unlocked():
    model_config.update(vocab_size=64, num_layers=1, embed_dim=32, num_heads=4, init='fan_in', init_scale=2.0)
    model_config.update(ast.literal_eval(changes))
  return model_lib.build(model_config)


def generate(model, params, prompts, sampling=GREEDY, max_new_tokens=20, eos_id=-1, rows=None, seeds=None):
  rows = rows or len(prompts)
  keys = jax.vmap(jax.random.key)(np.array(seeds or range(rows)))
  chunks = list(
    decode.decode(
      model,
      model.unstacked(params),
      decode.pad(prompts, rows),
      sampling,
      decode.Vocabulary(VOCAB, eos_id),
      keys,
      np.arange(rows) < len(prompts),
      max_new_tokens,
    )
  )
  tokens = np.concatenate([chunk.tokens_BxC for chunk in chunks], axis=1)
  return tokens, np.concatenate([chunk.logprobs_BxC for chunk in chunks], axis=1)


@functools.partial(jax.jit, static_argnums=0)
def forward(model, params, tokens, positions, segment_ids):
  return model.logits(params, model.hidden(params, Stream(tokens, positions, segment_ids))[0])


def full_logits(model, params, row):
  positions = np.arange(LENGTH, dtype=np.int32)[None]
  tokens = np.zeros_like(positions)
  tokens[0, : len(row)] = row
  logits = forward(model, params, tokens, positions, (positions < len(row)).astype(np.int32))
  return np.array(logits)[0, : len(row), :VOCAB]


@pytest.mark.parametrize('variant', VARIANTS)
def test_greedy_decoding_of_unequal_prompts_equals_the_full_forward(variant):
  model, params = tiny_model(**VARIANTS[variant])
  tokens, logprobs = generate(model, params, PROMPTS)
  for prompt, new, new_logprobs in zip(PROMPTS, tokens.tolist(), logprobs, strict=True):
    logits = full_logits(model, params, prompt + new[:-1])[len(prompt) - 1 :]
    np.testing.assert_array_equal(logits.argmax(axis=-1), new)
    expected = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), np.array(new)[:, None], axis=-1)[:, 0]
    np.testing.assert_allclose(new_logprobs, expected, rtol=1e-4, atol=1e-5)


def test_cached_logits_equal_those_of_the_full_forward():
  model, params = tiny_model(num_kv_heads=2)
  row = PROMPTS[0]
  logits, cache = jax.jit(model.prefill, static_argnums=2)(params, decode.pad([row[:10]], 1).stream, 32)
  stepwise = [logits]
  extend = jax.jit(model.extend)
  for position in range(10, len(row)):
    logits, cache = extend(params, cache, jnp.array(row[position : position + 1]), jnp.array([position]))
    stepwise.append(logits)
  np.testing.assert_allclose(
    np.concatenate(stepwise)[:, :VOCAB], full_logits(model, params, row)[9:], rtol=1e-4, atol=1e-5
  )


def test_a_row_does_not_depend_on_the_rows_beside_it():
  model, params = tiny_model()
  sampling = Sampling(temperature=1.0, top_p=0.9)
  together, _ = generate(model, params, PROMPTS, sampling)
  for i in (1, 3):
    alone, _ = generate(model, params, PROMPTS[i : i + 1], sampling, seeds=[i])
    np.testing.assert_array_equal(alone[0], together[i])


def test_draws_follow_the_seed_and_not_the_number_of_tokens_asked_for():
  model, params = tiny_model()
  sampling = Sampling(temperature=1.0)
  draw = lambda seed, count: generate(model, params, [[1, 2, 3]], sampling, count, seeds=[seed])[0][0].tolist()
  assert draw(0, 20) == draw(0, 20)
  assert draw(0, 20)[:7] == draw(0, 7)
  assert draw(0, 20) != draw(1, 20)


def test_a_row_ends_with_eos_while_others_go_on():
  model, params = tiny_model()
  free, _ = generate(model, params, PROMPTS)
  eos_id = int(free[1, 4])
  tokens, logprobs = generate(model, params, PROMPTS, eos_id=eos_id)
  for row, (new, unstopped) in enumerate(zip(tokens, free, strict=True)):
    ends = np.flatnonzero(unstopped == eos_id)
    length = ends[0] + 1 if len(ends) else len(unstopped)
    np.testing.assert_array_equal(new[:length], unstopped[:length], err_msg=f'row {row}')
    assert np.all(new[length:] == -1) and np.all(logprobs[row, length:] == 0)


def test_decoding_ends_when_every_row_has_ended():
  model, params = tiny_model()
  free, _ = generate(model, params, PROMPTS[:1])
  tokens, _ = generate(model, params, PROMPTS[:1], eos_id=int(free[0, 2]), max_new_tokens=200)
  assert tokens.shape[1] <= 1 + decode.CHUNK


def test_rows_without_a_prompt_generate_nothing():
  model, params = tiny_model()
  tokens, _ = generate(model, params, PROMPTS[:3], rows=4)
  assert np.all(tokens[3] == -1) and np.all(tokens[:3] >= 0)


def test_the_repetition_penalty_counts_prompt_and_new_tokens_but_not_the_first_mark():
  model, params = tiny_model()
  penalty = 1.7
  tokens, _ = generate(model, params, PROMPTS, Sampling(repetition_penalty=penalty))
  for prompt, new in zip(PROMPTS, tokens.tolist(), strict=True):
    logits = full_logits(model, params, prompt + new[:-1])[len(prompt) - 1 :]
    for i, (row, token) in enumerate(zip(logits, new, strict=True)):
      seen = sorted(set(prompt[1:] + new[:i]))
      row[seen] = np.where(row[seen] > 0, row[seen] / penalty, row[seen] * penalty)
      assert row.argmax() == token


@pytest.mark.parametrize('lengths, slots', [([1], 16), ([16], 16), ([17, 3], 32), ([100], 128)])
def test_prompts_are_padded_to_powers_of_two(lengths, slots):
  prompts = decode.pad([list(range(1, length + 1)) for length in lengths], len(lengths))
  assert prompts.tokens_BxP.shape == (len(lengths), slots)
  for row, length in enumerate(lengths):
    np.testing.assert_array_equal(prompts.tokens_BxP[row, slots - length :], np.arange(1, length + 1))
    np.testing.assert_array_equal(prompts.positions_BxP[row, slots - length :], np.arange(length))
    np.testing.assert_array_equal(prompts.segment_ids_BxP[row], np.arange(slots) >= slots - length)


def test_one_compilation_serves_prompts_and_limits_of_like_size():
  model, params = tiny_model()
  generate(model, params, PROMPTS[:2], Sampling(temperature=1.0), 12)
  compiled = decode._advance._cache_size()
  generate(model, params, [PROMPTS[0][:17], [4, 4, 4]], Sampling(temperature=0.3), 30)
  assert decode._advance._cache_size() == compiled
