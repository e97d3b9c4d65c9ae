import types
from pydoc_data import topics

import pytest

from configs import base as base_config
from data import tokenizers
from data.tokenizers import training

KINDS = ('bytes', *training.TRAINERS)


@pytest.fixture(scope='session')
def documents():
  return [types.SimpleNamespace(text=text, source=name) for name, text in sorted(topics.topics.items())[:40]]


@pytest.fixture
def data_config(tmp_path):
  data_config = base_config.get_config().data
  data_config.cache_dir = str(tmp_path / 'cache')
  data_config.vocab_size = 700
  return data_config


@pytest.fixture(scope='session')
def trained(documents, tmp_path_factory):
  """One tokenizer of each kind, trained on `documents`."""
  data_config = base_config.get_config().data
  data_config.cache_dir = str(tmp_path_factory.mktemp('cache'))
  data_config.vocab_size = 700
  out = {}
  for kind in KINDS:
    data_config.tokenizer = kind
    out[kind] = tokenizers.train(data_config, documents)
  return out
