"""Fill-in against the model's own logits of the text alone."""

import types

import numpy as np
import pytest

import inference
import model as model_lib
from configs import base
from data.tokenizers.bytes import BytesTokenizer
from model import Stream, Visibility


@pytest.fixture(scope='module')
def run():
  config = base.get_config()
  config.model.update({'vocab_size': 320, 'num_layers': 1, 'embed_dim': 16, 'num_heads': 1, 'init_scale': 0.5})
  model, params = model_lib.build(config.model)
  return types.SimpleNamespace(model=model, params=params, tokenizer=BytesTokenizer().reserving(['[MASK]']))


def test_fills_are_the_most_probable_tokens_of_text(run):
  [[first, second], [only]] = inference.fill(run, ['a [MASK] c<mask>', '[MASK]!'], top_k=256)
  ids = np.array([[256, *b'a ', 257, *b' c', 257, 256]])
  stream = Stream(ids, np.arange(ids.size)[None], np.ones_like(ids))
  hidden, _ = run.model.hidden(run.params, stream, None, Visibility.BIDIRECTIONAL)
  logits = np.asarray(run.model.logits(run.params, hidden), np.float64)[0, :, :256]
  for fills, place in ((first, 3), (second, 6)):
    expected = np.exp(logits[place]) / np.exp(logits[place]).sum()
    assert sorted(fill.token for fill in fills) == list(range(256))
    np.testing.assert_allclose(
      [fill.probability for fill in fills], expected[[fill.token for fill in fills]], rtol=1e-4
    )
    assert all(a.probability >= b.probability for a, b in zip(fills, fills[1:], strict=False))
  assert len(only) == 256 and only[0].text == run.tokenizer.decode([only[0].token])
  assert [fill.token for fill in inference.fill(run, ['[MASK]!'], top_k=3)[0][0]] == [fill.token for fill in only[:3]]


def test_what_cannot_be_filled_is_told(run):
  with pytest.raises(ValueError, match=r"the text 'no mask' has no mask; write \[MASK\]"):
    inference.fill(run, ['no mask'])
  with pytest.raises(ValueError, match='top_k is 0; it must be from 1 to 256'):
    inference.fill(run, ['[MASK]'], top_k=0)
  plain = types.SimpleNamespace(model=run.model, params=run.params, tokenizer=BytesTokenizer())
  with pytest.raises(ValueError, match='train with objective.name=masked'):
    inference.fill(plain, ['[MASK]'])
