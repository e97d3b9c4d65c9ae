"""Character-level Shakespeare in half of nanoGPT's CPU budget: 1000 steps of 12 x 64 characters, 4 layers, width 128.

  python train.py --config=configs/shakespeare.py --workdir=runs/shakespeare --config.data.path=TRAIN.txt
  python evaluate.py --workdir=runs/shakespeare --data=VALIDATION.txt
  python -m benchmarks.shakespeare      # both on nanoGPT's split of the text, and PyTorch's time for its own run

The text is one document, so it cannot be split by document: cut it before (nanoGPT: first 90 %, last 10 %).
"""

from configs import base


def get_config(variant: str = ''):
  """The run of 1000 steps.

  Raises:
    ValueError: `variant` is not empty; there is none.
  """
  if variant:
    raise ValueError(f'configs/shakespeare.py has no variant {variant!r}; use configs/shakespeare.py')
  config = base.get_config()
  config.data.corpus = 'text'
  config.data.validation_fraction = 0.0
  config.data.tokenizer = 'characters'
  config.data.packing = 'none'
  config.data.sequence_length = 64
  config.data.batch_tokens = 12 * 64
  config.model.num_layers = 4
  config.model.num_heads = 4
  config.model.embed_dim = 128
  config.optimizer.name = 'muon'
  config.optimizer.learning_rate = 0.01
  config.optimizer.adam_learning_rate = 0.003
  config.optimizer.schedule = 'linear'
  config.optimizer.beta2 = 0.99
  config.precision.dtype = 'bfloat16'
  config.train.steps = 1000
  config.train.log_every = 100
  config.train.eval_every = 0
  config.train.checkpoint_every = 0
  return config
