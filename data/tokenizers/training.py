"""From a config and documents to a tokenizer."""

from collections.abc import Sequence

from data.tokenizers import base
from data.tokenizers import bytes as bytes_tokenizer


def train(data_config, documents: Sequence) -> base.Tokenizer:
  """Returns the tokenizer that `data_config` names."""
  if data_config.tokenizer == 'bytes':
    return bytes_tokenizer.BytesTokenizer(data_config.normalization)
  raise ValueError(f'data.tokenizer is {data_config.tokenizer!r}; it must be one of bytes')
