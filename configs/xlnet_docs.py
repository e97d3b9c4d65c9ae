"""A small XLNet of the Python documentation, for two CPU cores.

  python train.py --config=configs/xlnet_docs.py --workdir=runs/xlnet_docs

Of the docstrings and manual topics of the Python that runs it, one token in six is predicted, in a random order, from
the others and from those of them that came before it (Yang et al. 2019). The validation loss is that of these tokens,
in nats. Who knows no more than how often each token occurs in the training text reaches the unigram entropy.
"""

from configs import quickstart


def get_config(variant: str = ''):
  """The run.

  Raises:
    ValueError: `variant` is not empty; there is none.
  """
  if variant:
    raise ValueError(f'configs/xlnet_docs.py has no variant {variant!r}; use configs/xlnet_docs.py')
  config = quickstart.get_config()
  config.data.tokenizer = 'sentencepiece-unigram'
  config.data.sequence_length = 128
  config.objective.name = 'permutation'
  config.model.update(
    num_layers=3,
    positions='xlnet',
    token_types=2,
    norm='layernorm',
    norm_position='post',
    activation='gelu',
    gated_mlp=False,
    use_bias=True,
    head_bias=True,
    attention={'bias': 'none'},
  )
  config.optimizer.warmup = 40
  config.train.steps = 350
  config.train.checkpoint_every = 175
  config.train.sample_prompts = ('',)
  return config
