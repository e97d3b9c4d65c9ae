"""The 124M shape of GPT-2 (Radford et al. 2019) on one's own text.

    python train.py --config=configs/gpt2.py --workdir=runs/gpt2 --config.data.path='text/*.txt'

Meant for 8 GPUs with 80 GB. Neither time nor score is given: this run has not been measured. On another machine choose
`--config.optimizer.accumulation_steps` so that a microbatch fits.

Unlike GPT-2, the tokenizer is trained on the same text; `--config.data.tokenizer=file
--config.data.tokenizer_path=tokenizer.json` takes GPT-2's own. Batch, learning rate and length are those of nanoGPT's
reproduction: 600,000 steps of 480 rows of 1,024 tokens.
"""

from configs import base


def get_config(variant: str = ''):
  """Returns the config; there is no variant."""
  if variant:
    raise ValueError(f'configs/gpt2.py has no variant {variant!r}; use --config=configs/gpt2.py')
  config = base.get_config()
  config.model.update(
    vocab_size=50304,
    num_layers=12,
    embed_dim=768,
    num_heads=12,
    mlp_dim=3072,
    positions='learned',
    norm='layernorm',
    activation='gelu_tanh',
    gated_mlp=False,
    use_bias=True,
    tie_embeddings=True,
  )
  config.data.update(
    corpus='text', tokenizer='byte-bpe', vocab_size=50257, sequence_length=1024, batch_tokens=480 * 1024
  )
  config.optimizer.update(learning_rate=6e-4, warmup=2000, beta2=0.95, weight_decay=0.1, accumulation_steps=5)
  config.train.update(steps=600_000, eval_every=1000, eval_batches=20, checkpoint_every=1000)
  config.precision.dtype = 'bfloat16'
  return config
