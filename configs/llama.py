"""Llama 3 shapes (Grattafiori et al. 2024, table 3; Llama 3.2 for 1b) on one's own text.

    python train.py --config=configs/llama.py:1b --workdir=runs/llama-1b --config.data.path='text/*.jsonl'
    python train.py --config=configs/llama.py:8b --workdir=runs/llama-8b --config.data.path='text/*.jsonl'

Meant for 8 GPUs with 80 GB (1b) and 64 of them (8b), with parameters and optimizer state sharded over all. Neither time
nor score is given: these runs have not been measured. Rotary positions are not rescaled as in Llama 3.1 and 3.2.

The vocabulary is that of Llama 3, whose tokenizer.json is expected in the working directory;
`--config.data.tokenizer_path=FILE` names it elsewhere.
"""

from configs import base

_SHAPES = {
  '1b': {'num_layers': 16, 'embed_dim': 2048, 'num_heads': 32, 'mlp_dim': 8192, 'tie_embeddings': True},
  '8b': {'num_layers': 32, 'embed_dim': 4096, 'num_heads': 32, 'mlp_dim': 14336, 'tie_embeddings': False},
}


def get_config(variant: str = '1b'):
  """Returns the config of variant '1b' (also without one) or '8b'."""
  variant = variant or '1b'
  if variant not in _SHAPES:
    raise ValueError(
      f'configs/llama.py has no variant {variant!r}; use one of {", ".join(_SHAPES)}, for example '
      '--config=configs/llama.py:1b'
    )
  config = base.get_config()
  config.zero_stage = 3
  config.model.update(
    _SHAPES[variant],
    vocab_size=128256,
    num_kv_heads=8,
    positions='rope',
    rope={'theta': 500000.0},
    norm='rmsnorm',
    activation='silu',
    gated_mlp=True,
    remat='selective',
  )
  config.data.update(
    corpus='jsonl', tokenizer='file', tokenizer_path='tokenizer.json', sequence_length=8192, batch_tokens=2**22
  )
  config.optimizer.update(learning_rate=3e-4, warmup=8000, beta2=0.95, weight_decay=0.1, accumulation_steps=8)
  config.train.update(steps=200_000, eval_every=1000, eval_batches=20, checkpoint_every=1000)
  config.mesh.update(data=1, fsdp={'1b': 8, '8b': 64}[variant])
  config.precision.dtype = 'bfloat16'
  return config
