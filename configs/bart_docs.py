"""A small BART of the Python documentation, for two CPU cores.

  python train.py --config=configs/bart_docs.py --workdir=runs/bart_docs

The docstrings and manual topics of the Python that runs it are damaged, by masks in the place of spans and sentences
out of order, and the decoder writes them as they were (Lewis et al. 2020).
The validation loss is that of the tokens that the decoder writes, in nats. Who knows no more than how often each of
them occurs reaches the unigram entropy.
"""

from configs import quickstart


def get_config(variant: str = ''):
  """The run.

  Raises:
    ValueError: `variant` is not empty; there is none.
  """
  if variant:
    raise ValueError(f'configs/bart_docs.py has no variant {variant!r}; use configs/bart_docs.py')
  config = quickstart.get_config()
  config.data.tokenizer = 'sentencepiece-unigram'
  config.data.sequence_length = 128
  config.objective.name = 'denoising'
  config.model.update(
    family='encoder_decoder',
    num_layers=3,
    positions='learned',
    embedding_norm=True,
    norm='layernorm',
    norm_position='post',
    activation='gelu',
    gated_mlp=False,
    use_bias=True,
    head_bias=True,
  )
  config.optimizer.warmup = 40
  config.train.steps = 300
  config.train.eval_every = 60
  config.train.checkpoint_every = 150
  config.train.sample_prompts = ('',)
  return config
