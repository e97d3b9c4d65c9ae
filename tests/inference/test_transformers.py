"""Greedy and beam search against transformers' `generate`: whole models, prompts of unlike lengths as one batch."""

import pathlib

import jax
import numpy as np
import pytest

import model as model_lib
from inference import beam, decode, sampling
from tests.interop import goldens

FOLDER = pathlib.Path(__file__).resolve().parents[1] / 'golden' / 'generation'
EOS = 3


@pytest.mark.parametrize('name', ['t5', *(pytest.param(n, marks=pytest.mark.slow) for n in ('gpt2', 'llama', 'bart'))])
def test_writes_what_transformers_writes(name, tmp_path, monkeypatch):
  monkeypatch.setattr(goldens, 'FOLDER', FOLDER)
  golden, pretrained = goldens.load(name), goldens.pretrained(name, tmp_path)
  model_config = pretrained.config.model
  model = model_lib.create(model_config)
  params = model.unstacked(pretrained.params())
  limit = int(golden['new_tokens'])
  given = [golden[f'prompts/{i}'].tolist() for i in range(len(golden['texts/0']))]
  prompts = decode.pad(given, len(given), model_config.family == 'encoder_decoder')
  vocabulary = decode.Vocabulary(
    model_config.vocab_size, EOS, model_config.forced_first_token, model_config.forced_last_token
  )
  for case in (name for name in golden.files if name.startswith('options/')):
    num_beams, length_penalty, early = golden[case]
    texts = [[int(token) for token in text if token >= 0] for text in golden[case.replace('options', 'texts')]]
    if num_beams == 1:
      keys = jax.random.split(jax.random.key(0), len(given))
      active = np.ones(len(given), bool)
      chunks = decode.decode(model, params, prompts, sampling.Sampling(), vocabulary, keys, active, limit)
      written = np.concatenate([chunk.tokens_BxC for chunk in chunks], axis=1)
      written = [[int(token) for token in text if token >= 0] for text in written]
    else:
      limits = beam.Limits(limit, length_penalty, None, int(early))
      best = beam.search(model, params, prompts, vocabulary, int(num_beams), limits)
      written = [text[:length].tolist() for text, length in zip(best.tokens_BxT, best.length_B, strict=True)]
    assert written == texts, f'{case}: {golden[case]}'
