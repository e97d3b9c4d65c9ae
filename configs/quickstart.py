"""A language model of the Python documentation, on two CPU cores in five minutes.

  make train            # or: python train.py --config=configs/quickstart.py --workdir=runs/quickstart

The text is the docstrings and manual topics of the Python that runs it: nothing is downloaded. Time and bits per byte
reached are in the README's table. Variant `tiny` is for tests and takes seconds:

  python train.py --config=configs/quickstart.py:tiny --workdir=runs/tiny
"""

from configs import base


def get_config(variant: str = ''):
  """The quickstart, or its `tiny` variant.

  Raises:
    ValueError: the variant does not exist.
  """
  config = base.get_config()
  config.data.vocab_size = 2048
  config.data.sequence_length = 256
  config.data.batch_tokens = 4096
  config.model.num_layers = 4
  config.model.embed_dim = 256
  config.model.num_heads = 4
  config.optimizer.name = 'muon'
  config.optimizer.learning_rate = 0.02
  config.optimizer.adam_learning_rate = 0.003
  config.optimizer.schedule = 'linear'
  config.optimizer.final_fraction = 0.05
  config.optimizer.warmup = 20
  config.precision.dtype = 'bfloat16'
  config.train.steps = 420
  config.train.eval_every = 70
  config.train.checkpoint_every = 140
  config.train.sample_prompts = ('', 'Return a new ', 'This module provides ')
  if variant == 'tiny':
    config.data.tokenizer = 'bytes'
    config.data.sequence_length = 64
    config.data.batch_tokens = 1024
    config.model.num_layers = 2
    config.model.embed_dim = 64
    config.train.steps = 40
    config.train.eval_every = 20
    config.train.eval_batches = 4
    config.train.checkpoint_every = 20
    config.train.sample_tokens = 16
  elif variant:
    raise ValueError(f'configs/quickstart.py has no variant {variant!r}; there is configs/quickstart.py:tiny')
  return config
