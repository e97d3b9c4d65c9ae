"""A small BERT of the Python documentation, for two CPU cores.

  python train.py --config=configs/bert_docs.py --workdir=runs/bert_docs
  python generate.py --workdir=runs/bert_docs --fill='Return a [MASK] object.'

Of the docstrings and manual topics of the Python that runs it, 15 % of the tokens are hidden or replaced and predicted
from both sides (Devlin et al. 2018). The validation loss is that of these tokens, in nats. Who knows no more than how
often each token occurs in the training text reaches the unigram entropy.
"""

from configs import quickstart


def get_config(variant: str = ''):
  """The run.

  Raises:
    ValueError: `variant` is not empty; there is none.
  """
  if variant:
    raise ValueError(f'configs/bert_docs.py has no variant {variant!r}; use configs/bert_docs.py')
  config = quickstart.get_config()
  config.data.tokenizer = 'wordpiece'
  config.data.sequence_length = 128
  config.objective.name = 'masked'
  config.model.update(
    family='encoder',
    positions='learned',
    token_types=2,
    embedding_norm=True,
    norm='layernorm',
    norm_position='post',
    activation='gelu',
    gated_mlp=False,
    use_bias=True,
    head_transform=True,
    head_bias=True,
  )
  config.optimizer.warmup = 40
  config.train.sample_prompts = ('',)
  return config
