"""What a config leaves open until the data is known."""

import dataclasses

import model as model_lib
from training import configs


def resolve(config, tokenizer):
  """A copy of the config with what the tokenizer and other keys decide filled in.

  Raises:
    ConfigError: `model.vocab_size` is smaller than the tokenizer's.
  """
  config = configs.from_json(configs.to_json(config)).unlock()
  if not config.model.vocab_size:
    config.model.vocab_size = -(-tokenizer.vocab_size // 64) * 64
  if config.model.vocab_size < tokenizer.vocab_size:
    raise configs.ConfigError(
      f"model.vocab_size={config.model.vocab_size} is smaller than the tokenizer's "
      f'{tokenizer.vocab_size}; set model.vocab_size=0 to follow it'
    )
  if config.model.family == 'encoder_decoder' and config.model.start_token < 0:
    config.model.start_token = tokenizer.special.start_id
  if config.model.positions == 'learned' and not config.model.max_length:
    config.model.max_length = config.data.sequence_length
  config.model = model_lib.resolve(config.model)
  return config.lock()


def special_tokens(config, special):
  """What a resolved config and the tokenizer's `special` say of the vocabulary together."""
  if config.model.family != 'encoder_decoder':
    return special
  return dataclasses.replace(special, start_id=config.model.start_token)
