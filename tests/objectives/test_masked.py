"""Masked language modelling: BERT's numbers, whole words, and the loss."""

import re

import jax
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

import model as model_lib
import objectives
from configs import base
from tests.objectives.material import EOS, SPECIAL, TOKENIZER, objective_config, packed_rows


def test_fifteen_percent_are_predicted_of_which_eight_in_ten_are_hidden():
  objective = objectives.create(objective_config('masked'), SPECIAL)
  rows, seeds = packed_rows([700, 90, 30, 20, 5] * 60, 1, 256)
  batch = objective.examples(rows, seeds)
  chosen = batch['labels'] >= 0
  ordinary = SPECIAL.ordinary[rows['tokens']] & (rows['segment_ids'] > 0)
  assert not (chosen & ~ordinary).any()
  np.testing.assert_allclose(chosen.sum(1), 0.15 * ordinary.sum(1), atol=0.51)
  np.testing.assert_array_equal(batch['labels'][chosen], rows['tokens'][chosen])
  np.testing.assert_array_equal(batch['tokens'][~chosen], rows['tokens'][~chosen])
  seen, was, count = batch['tokens'][chosen], rows['tokens'][chosen], chosen.sum()
  same = 0.1 + 0.1 / 256  # a random token may be the one that was there
  for share, expected in (((seen == SPECIAL.mask_id).mean(), 0.8), ((seen == was).mean(), same)):
    assert abs(share - expected) < 4 * np.sqrt(expected / count)
  random_tokens = seen[(seen != was) & (seen != SPECIAL.mask_id)]
  assert random_tokens.max() < 256 and abs(random_tokens.mean() - 127.5) < 4 * 74 / np.sqrt(len(random_tokens))
  places = np.nonzero(chosen)[1]
  assert abs(places.mean() - 127.5) < 4 * 74 / np.sqrt(count)


@given(
  text=st.text(st.sampled_from('abcdef  .,_é'), min_size=1, max_size=80),
  rate=st.floats(0.05, 0.9),
  seed=st.integers(0, 1000),
)
def test_whole_words_are_never_split(text, rate, seed):
  objective = objectives.create(objective_config('masked', whole_words=True, mask_rate=rate), SPECIAL)
  ids = np.concatenate([[EOS], TOKENIZER.encode(text), [EOS]]).astype(np.int32)
  rows = {'tokens': ids, 'segment_ids': np.ones_like(ids), 'positions': np.arange(len(ids), dtype=np.int32)}
  batch = objective.examples({key: array[None] for key, array in rows.items()}, np.array([[seed, 0, 0]]))
  chosen, begin = batch['labels'][0] >= 0, 1
  for word in re.findall(r'\w+|[^\w]', text):
    end = begin + len(word.encode())
    assert chosen[begin:end].all() or not chosen[begin:end].any()
    begin = end
  assert chosen.sum() <= max(1, round(rate * (len(ids) - 2)))


def test_the_mark_before_a_document_is_the_vocabularys_own():
  from data.tokenizers.bytes import BytesTokenizer

  special = BytesTokenizer().reserving(['[MASK]', '[CLS]']).special
  rows, seeds = packed_rows([5, 6], 0, 20)
  batch = objectives.create(objective_config('masked'), special).examples(rows, seeds)
  assert (batch['tokens'][rows['tokens'] == EOS] == EOS).sum() == 2
  assert (batch['tokens'][(rows['positions'] == 0) & (rows['segment_ids'] > 0)] == special.opening_id).all()


def test_the_loss_is_of_the_hidden_tokens_given_both_sides():
  config = base.get_config()
  config.model.update({'vocab_size': 384, 'num_layers': 1, 'embed_dim': 16, 'num_heads': 1, 'init_scale': 0.5})
  model, params = model_lib.build(config.model)
  objective = objectives.create(objective_config('masked'), SPECIAL)
  batch = objective.examples(*packed_rows([40], 2, 48))
  loss = jax.jit(objective.loss(model))
  mean, metrics = loss(params, batch, None)
  assert float(metrics['loss'].weight) == 6
  last = int(np.flatnonzero(batch['segment_ids'][0])[-1])
  changed = batch | {'tokens': batch['tokens'].copy()}
  changed['tokens'][0, last] = 65  # behind every label
  assert abs(float(loss(params, changed, None)[0]) - float(mean)) > 1e-6
  reported = objective.summarize(metrics, 4)
  assert set(reported) == {'loss', 'perplexity', 'accuracy'}
  np.testing.assert_allclose(reported['loss'], mean, rtol=1e-6)
