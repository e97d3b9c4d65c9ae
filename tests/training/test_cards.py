import json

import pytest
import yaml

from configs import base
from training import cards

SUMMARY = {'step': 7, 'tokens': 1234, 'eval_loss': 2.5, 'perplexity': float('inf'), 'bits_per_byte': 1.25}


def parts(text):
  """The head and the body of a card."""
  before, head, body = text.split('---\n', 2)
  assert before == ''
  return yaml.safe_load(head), body


def make(summary=SUMMARY, **changes):
  config = base.get_config()
  config.model.update(vocab_size=64, num_kv_heads=4, head_dim=64, mlp_dim=704)
  config.data.update(changes)
  options = {'name': 'a: "strange" #name', 'num_params': 12_345, 'command': 'python train.py --config=x'}
  return cards.card(config, summary=summary, **options)


def test_the_head_is_yaml_with_what_was_measured():
  head, body = parts(make())
  assert head['pipeline_tag'] == 'text-generation' and head['library_name'] == 'meshlm'
  [model] = head['model-index']
  assert model['name'] == 'a: "strange" #name'
  metrics = {metric['type']: metric['value'] for metric in model['results'][0]['metrics']}
  assert metrics == {'loss': 2.5, 'bits_per_byte': 1.25}  # JSON and YAML know no infinity
  for words in ('12,345 parameters', '1,234 tokens', '`causal`', '7 steps', '| loss | 2.5000 |', 'train.py --config=x'):
    assert words in body


@pytest.mark.parametrize('summary', [{}, {**SUMMARY, 'eval_loss': float('nan'), 'bits_per_byte': None}])
def test_what_was_not_measured_is_not_told(summary):
  head, body = parts(make(summary))
  assert 'model-index' not in head and 'None were measured' in body


def test_a_data_set_of_the_hub_is_named():
  head, body = parts(make(corpus='huggingface', path='some/set'))
  assert head['datasets'] == ['some/set'] and '`huggingface` (some/set)' in body
  mixture = make(corpus='mixture', mixture=({'corpus': 'text', 'path': 'x', 'weight': 0.5},))
  assert 'a mixture of 0.5 x text' in parts(mixture)[1]


def test_a_card_is_written_whole(tmp_path):
  cards.write(tmp_path, make())
  assert [file.name for file in tmp_path.iterdir()] == [cards.NAME]
  (tmp_path / 'summary.json').write_text(json.dumps({'step': 3}))
  assert cards.read_summary(tmp_path) == {'step': 3} and cards.read_summary(tmp_path / 'x') == {}
