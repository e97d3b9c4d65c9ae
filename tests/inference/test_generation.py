"""Prompts in words to continuations in words."""

import functools
import types

import jax
import numpy as np
import pytest

import inference
import model as model_lib
import precision
from configs import base
from data.tokenizers.bytes import BytesTokenizer
from inference import decode, generation

PROMPTS = ['The cat', '', 'é', 'A longer prompt than the others', 'x', 'yz']


@functools.cache
def make_run(**changes):
  model_config = base.get_config().model
  with model_config.unlocked():
    model_config.update(vocab_size=320, num_layers=1, embed_dim=32, num_heads=2, init='fan_in', init_scale=2.0)
    model_config.update(changes)
  model, params = model_lib.build(model_config)
  decoder = precision.Decoder(model, precision.Policy((('*', 'float32'),)))
  generates = model_config.family != 'encoder'
  decoding_params = decoder.unstacked(params, model_lib.Stream.of_one_token()) if generates else None
  return types.SimpleNamespace(
    decoder=decoder, params=params, decoding_params=decoding_params, tokenizer=BytesTokenizer()
  )


def test_draws_of_a_prompt_depend_on_the_seed_and_not_on_batches(monkeypatch):
  run = make_run()
  sample = lambda seed: inference.generate(run, PROMPTS, max_new_tokens=12, seed=seed)
  first = sample(0)
  assert [one.prompt for one in first] == PROMPTS
  assert [one.tokens for one in first] != [one.tokens for one in sample(1)]
  monkeypatch.setattr(generation, 'MAX_ROWS', 4)
  assert [one.tokens for one in sample(0)] == [one.tokens for one in first]


def test_tokens_come_as_they_are_generated():
  run = make_run()
  calls = []
  [one] = inference.generate(
    run, ['The'], max_new_tokens=30, stop_at_eos=False, on_tokens=lambda index, tokens: calls.append((index, tokens))
  )
  assert [token for _, tokens in calls for token in tokens] == one.tokens
  assert len(one.tokens) == 30 and {index for index, _ in calls} == {0}
  assert len(calls) > 3


def test_the_end_of_a_document_ends_the_text_unless_told_otherwise():
  run = make_run()
  eos_id = run.tokenizer.eos_id
  prompts = ['The'] * len(PROMPTS)
  free, stopped = (inference.generate(run, prompts, max_new_tokens=150, stop_at_eos=stop) for stop in (False, True))
  assert {one.finished for one in stopped} == {True, False}
  for longer, shorter in zip(free, stopped, strict=True):
    assert len(longer.tokens) == 150 and not longer.finished
    end = longer.tokens.index(eos_id) if shorter.finished else 150
    assert shorter.tokens == longer.tokens[:end]
    assert shorter.finished == (eos_id in longer.tokens)
    assert longer.logprob < shorter.logprob < 0 if shorter.finished else longer.logprob == shorter.logprob


def test_text_is_decoded_behind_its_prompt():
  class Words:
    vocab_size, eos_id = 257, 256
    encode = staticmethod(lambda text: [int(word) for word in text.split()])
    decode = staticmethod(lambda ids: ' '.join(str(i) for i in ids if i != 256))

  run = make_run()
  run = types.SimpleNamespace(decoder=run.decoder, decoding_params=run.decoding_params, tokenizer=Words())
  [one] = inference.generate(run, ['3 4'], max_new_tokens=3, stop_at_eos=False, seed=1)
  assert one.text.startswith(' ') and (one.prompt + one.text).split() == ['3', '4', *map(str, one.tokens)]


def test_more_beams_find_texts_at_least_as_probable_as_greedy_ones():
  run = make_run()
  options = dict(max_new_tokens=6, stop_at_eos=False)
  greedy = inference.generate(run, PROMPTS[:3], temperature=0, **options)
  beams = inference.generate(run, PROMPTS[:3], num_beams=32, **options)
  for one, better in zip(greedy, beams, strict=True):
    assert better.logprob >= one.logprob - 1e-4 and len(better.tokens) == 6


def test_learned_positions_limit_the_text_and_samples_end_there():
  run = make_run(positions='learned', max_length=16)
  assert len(inference.generate(run, ['four'], max_new_tokens=12, stop_at_eos=False)[0].tokens) == 12
  with pytest.raises(ValueError, match='ask for at most 12 new tokens'):
    inference.generate(run, ['four'], max_new_tokens=13)
  with pytest.raises(ValueError, match='shorten it'):
    inference.generate(run, ['x' * 16], max_new_tokens=1)
  config = base.get_config()
  assert len(inference.sample_texts(config, run.decoder, run.params, run.tokenizer, ['four', ''])) == 2


def test_an_encoder_is_refused_and_an_encoder_decoder_writes_the_target_of_each_source():
  with pytest.raises(ValueError, match="family='encoder' does not generate text; fill masks"):
    model = types.SimpleNamespace(config=types.SimpleNamespace(family='encoder'))
    decoder = precision.Decoder(model, precision.Policy((('*', 'float32'),)))
    inference.generate(types.SimpleNamespace(decoder=decoder, tokenizer=BytesTokenizer()), ['x'])
  run = make_run(family='encoder_decoder', positions='learned', max_length=12)
  run = types.SimpleNamespace(**vars(run), config=base.get_config())
  together = inference.generate(run, ['some', 'source'], max_new_tokens=12, temperature=0, stop_at_eos=False)
  [alone] = inference.generate(run, ['source'], max_new_tokens=12, temperature=0, stop_at_eos=False)
  assert together[1].tokens == alone.tokens and len(alone.tokens) == 12
  with pytest.raises(ValueError, match='the longest source has 13 tokens'):
    inference.generate(run, ['x' * 12], max_new_tokens=1)


@pytest.mark.parametrize(
  'options, words',
  [
    ({'max_new_tokens': 0}, 'max_new_tokens is 0; it must be at least 1'),
    ({'temperature': -1.0}, 'temperature is -1.0'),
    ({'temperature': float('nan')}, 'temperature is nan'),
    ({'top_k': -1}, 'top_k is -1'),
    ({'top_p': 0.0}, 'top_p is 0.0'),
    ({'top_p': 1.5}, 'top_p is 1.5'),
    ({'min_p': 2.0}, 'min_p is 2.0'),
    ({'repetition_penalty': 0.0}, 'repetition_penalty is 0.0'),
    ({'num_beams': 0}, 'num_beams is 0'),
    ({'seed': -1}, 'seed is -1'),
    ({'num_beams': 2, 'top_k': 5}, 'beam search does not sample'),
    ({'num_beams': 2, 'on_tokens': print}, 'leave out on_tokens'),
    ({'prompts': 'text'}, 'give a list of texts'),
  ],
)
def test_wrong_arguments_are_refused_in_words(options, words):
  run = make_run()
  with pytest.raises(ValueError, match=words):
    inference.generate(run, **{'prompts': ['x']} | options)


def test_no_prompts_give_no_texts():
  assert inference.generate(make_run(), []) == []


def test_generation_runs_in_the_precision_of_training_from_weights_rounded_once():
  run = make_run()
  config = base.get_config()
  config.precision.dtype = 'bfloat16'
  decoder = precision.Decoder(run.decoder.model, precision.policy(config.precision))
  stream = decode.pad([[1, 2, 3]], 1).stream
  params = decoder.unstacked(run.params, stream)
  dtypes = {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf.dtype.name
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  }
  assert dtypes['layers/0/mlp/up/kernel'] == dtypes['layers/0/attention/query/kernel'] == 'bfloat16'
  assert dtypes['embedding/table'] == 'bfloat16' and dtypes['final_norm/scale'] == 'float32'
  wide, _ = jax.jit(lambda p: decoder.prefill(p, stream, 32))(run.decoder.model.unstacked(run.params))
  narrow, _ = jax.jit(lambda p: decoder.prefill(p, stream, 32))(params)
  exact, _ = jax.jit(lambda p: run.decoder.prefill(p, stream, 32))(run.params)
  np.testing.assert_array_equal(wide, narrow)
  assert 1e-4 < np.abs(np.asarray(exact) - narrow).max() / np.abs(exact).max() < 0.05
