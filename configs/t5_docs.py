"""A small T5 of the Python documentation, for two CPU cores.

  python train.py --config=configs/t5_docs.py --workdir=runs/t5_docs

Of the docstrings and manual topics of the Python that runs it, 15 % of the tokens are cut out in spans of three on
average; the decoder writes each behind the sentinel that stands in its place (Raffel et al. 2020).
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
    raise ValueError(f'configs/t5_docs.py has no variant {variant!r}; use configs/t5_docs.py')
  config = quickstart.get_config()
  config.data.tokenizer = 'sentencepiece-unigram'
  config.data.sequence_length = 128
  config.objective.name = 'span_corruption'
  config.model.update(family='encoder_decoder', num_layers=3, positions='t5', activation='gelu_tanh', gated_mlp=True)
  config.optimizer.warmup = 40
  config.train.steps = 400
  config.train.eval_every = 80
  config.train.checkpoint_every = 200
  config.train.sample_prompts = ('',)
  return config
