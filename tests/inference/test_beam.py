"""Beam search against enumeration of every text and against Hugging Face transformers."""

import functools
import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import model as model_lib
from configs import base
from inference import beam, decode
from model import Stream

GOLDEN = np.load(pathlib.Path(__file__).resolve().parents[1] / 'golden' / 'beam_search.npz')
GOLDEN_CASES = [name.removesuffix('_options') for name in GOLDEN if name.endswith('_options')]
EOS = 0
VOCAB, LIMIT = 4, 4  # small enough to enumerate every text


class MarkovChain:
  """Next-token logits that depend on the last token alone; params hold the table."""

  def prefill(self, params, stream, slots):
    return params['table'][stream.tokens[:, -1]], {'slots': jnp.zeros((len(stream.tokens), slots))}

  def extend(self, params, cache, token_B, position_B):
    return params['table'][token_B], cache


CHAIN = MarkovChain()


@pytest.mark.parametrize('name', GOLDEN_CASES)
def test_agrees_with_transformers(name):
  num_beams, length_penalty, repetition_penalty = GOLDEN[f'{name}_options']
  limits = beam.Limits(
    int(GOLDEN['new_tokens']), length_penalty, None if repetition_penalty == 1 else repetition_penalty
  )
  prompts = decode.pad([GOLDEN['prompt'].tolist()], 1)
  vocabulary = decode.Vocabulary(GOLDEN['tables'].shape[-1], EOS)
  for table, expected in zip(GOLDEN['tables'], GOLDEN[name], strict=True):
    best = beam.search(CHAIN, {'table': table}, prompts, vocabulary, int(num_beams), limits)
    assert best.tokens_BxT[0, : best.length_B[0]].tolist() == [token for token in expected if token >= 0]


def tiny_model(vocab_size):
  model_config = base.get_config().model
  with model_config.unlocked():
    model_config.update(vocab_size=vocab_size, num_layers=2, embed_dim=16, num_heads=2, init='fan_in', init_scale=3.0)
  return model_lib.build(model_config)


@functools.partial(jax.jit, static_argnums=0)
def forward(model, params, tokens, positions):
  hidden, _ = model.hidden(params, Stream(tokens, positions, jnp.ones_like(tokens)))
  return jax.nn.log_softmax(model.logits(params, hidden))


def log_probabilities(model, params, prompt, texts):
  """Of each text after `prompt`, from one pass without a cache."""
  rows = np.zeros((len(texts), len(prompt) + LIMIT), np.int32)
  for row, text in zip(rows, texts, strict=True):
    row[: len(prompt) + len(text)] = prompt + list(text)
  positions = np.broadcast_to(np.arange(rows.shape[1], dtype=np.int32), rows.shape)
  logprobs = np.asarray(forward(model, params, rows, positions))
  return np.array(
    [
      sum(row[len(prompt) - 1 + i, token] for i, token in enumerate(text))
      for row, text in zip(logprobs, texts, strict=True)
    ]
  )


@pytest.fixture(scope='module')
def every_text():
  """A model, prompts and, for each of them, every text with its log-probability."""
  model, params = tiny_model(VOCAB)
  prompts = [[0, 1, 2, 2], [0, 3], [0]]
  texts = [
    text
    for length in range(1, LIMIT + 1)
    for text in itertools.product(range(VOCAB), repeat=length)
    if EOS not in text[:-1] and (length == LIMIT or text[-1] == EOS)
  ]
  return model, params, prompts, texts, [log_probabilities(model, params, prompt, texts) for prompt in prompts]


@pytest.mark.parametrize('length_penalty', [1.0, 0.0, -0.5, 3.0])
def test_enough_beams_find_the_best_of_all_texts(every_text, length_penalty):
  model, params, prompts, texts, logprobs = every_text
  best = beam.search(
    model,
    model.unstacked(params),
    decode.pad(prompts, 4),
    decode.Vocabulary(VOCAB, EOS),
    VOCAB**LIMIT,
    beam.Limits(LIMIT, length_penalty, None),
  )
  lengths = np.array([len(text) for text in texts])
  for row in range(len(prompts)):
    scores = logprobs[row] / lengths**length_penalty
    winner = int(scores.argmax())
    assert best.tokens_BxT[row, : best.length_B[row]].tolist() == list(texts[winner])
    np.testing.assert_allclose(best.score_B[row], scores[winner], rtol=1e-4)
    np.testing.assert_allclose(best.logprob_B[row], logprobs[row][winner], rtol=1e-4)


def test_ends_as_soon_as_no_running_beam_can_win(monkeypatch):
  # Ids 1 and 2 end with probability 0.9, so the best text is found long before the limit.
  table = np.log(np.array([[0.98, 0.01, 0.01], [0.9, 0.05, 0.05], [0.9, 0.05, 0.05]], np.float32))
  calls = []
  advance = beam._advance
  monkeypatch.setattr(beam, '_advance', lambda *arguments: calls.append(0) or advance(*arguments))
  best = beam.search(
    CHAIN, {'table': table}, decode.pad([[0, 1]], 1), decode.Vocabulary(3, EOS), 2, beam.Limits(1000, 0.0, None)
  )
  assert best.tokens_BxT[0, : best.length_B[0]].tolist() == [EOS]
  assert not calls
