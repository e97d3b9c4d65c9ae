"""Published shapes on the hardware that they are laid out for, from one GPU to a pod of 512 chips.

| variant | model | hardware | layout |
|---|---|---|---|
| `decoder_8b` | Llama 3 8B | v5e:16x16 | ZeRO-3 over 64, tensor 4 |
| `decoder_70b` | Llama 3 70B | v5p:8x8x8 | ZeRO-3 over 64, tensor 8 with sequence parallelism |
| `moe_8x7b` | Mixtral 8x7B | v5p:8x8x8 | ZeRO-3 over 64, experts over 8 |
| `t5_11b` | T5 11B | v5e:16x16 | ZeRO-3 over 64, tensor 4 |
| `bert_340m` | BERT large | v5e:4x4 | data 16, ZeRO-1 |
| `context_128k` | Llama 3.1 8B, 131,072 tokens a row | v5p:8x8x8 | ZeRO-3 over 32, sequence 16 |
| `llama_1b_h200` | Llama 3.2 1B | h200:1 | one device |
| `llama_8b_h200_8` | Llama 3.1 8B | h200:8 | ZeRO-3 over 8 |
| `llama_8b_h200_32` | Llama 3.1 8B | h200:32 | ZeRO-3 over 8, replicated over 4 hosts |

To plan one (configs/pods.py:decoder_8b and the others), and to train it:

  python plan.py --config=configs/pods.py:decoder_8b --topology=v5e:16x16
  python train.py --config=configs/pods.py:decoder_8b --workdir=runs/8b --config.data.path='text/*.jsonl'

They are meant for this hardware; plan.py tells whether they compile for it and fit. None of them has been trained, so
neither time nor score is given. configs/pods.py:decoder_70b, configs/pods.py:moe_8x7b, configs/pods.py:t5_11b,
configs/pods.py:bert_340m, configs/pods.py:context_128k, configs/pods.py:llama_1b_h200, configs/pods.py:llama_8b_h200_8
and configs/pods.py:llama_8b_h200_32 are read in the same way. Each expects the tokenizer.json of its family in the
working directory; `--config.data.tokenizer_path=FILE` names it elsewhere.
"""

from configs.families import bert, llama, mixtral, t5


def get_config(variant: str = ''):
  """Returns the config of a variant, by default 'decoder_8b'.

  Raises:
    ValueError: the variant does not exist.
  """
  variant = variant or 'decoder_8b'
  if variant not in _CONFIGS:
    raise ValueError(
      f'configs/pods.py has no variant {variant!r}; use one of {", ".join(_CONFIGS)}, for example '
      '--config=configs/pods.py:decoder_8b'
    )
  config = _CONFIGS[variant]()
  config.data.update(corpus='jsonl', tokenizer='file', tokenizer_path='tokenizer.json')
  config.precision.dtype = 'bfloat16'
  config.train.update(eval_every=1000, eval_batches=20, checkpoint_every=1000)
  return config


def _laid_out(config, *, length, rows, steps, accumulation=1, zero_stage=3, remat='full', **mesh):
  config.data.update(sequence_length=length, batch_tokens=rows * length)
  config.optimizer.accumulation_steps = accumulation
  config.train.steps = steps
  config.zero_stage, config.model.remat = zero_stage, remat
  config.mesh.update({'data': 1} | mesh)
  return config


def _decoder_8b():
  config = llama.get_config('3-8b')
  config.optimizer.update(learning_rate=3e-4, warmup=8000)
  return _laid_out(config, length=8192, rows=512, steps=250_000, accumulation=8, fsdp=64, tensor=4)


def _decoder_70b():
  config = llama.get_config('3-70b')
  config.optimizer.update(learning_rate=1.5e-4, warmup=8000)
  return _laid_out(
    config, length=8192, rows=512, steps=250_000, accumulation=4, fsdp=64, tensor=8, sequence_parallel=True
  )


def _moe_8x7b():
  config = mixtral.get_config('8x7b')
  config.optimizer.update(learning_rate=3e-4, warmup=2000)
  return _laid_out(config, length=4096, rows=1024, steps=250_000, accumulation=2, fsdp=64, expert=8)


def _t5_11b():
  config = t5.get_config('11b')
  config.optimizer.update(name='adafactor', learning_rate=1e-2, schedule='inverse_sqrt', warmup=10_000)
  return _laid_out(config, length=512, rows=2048, steps=500_000, accumulation=4, fsdp=64, tensor=4)


def _bert_340m():
  config = bert.get_config('large')
  config.optimizer.update(learning_rate=1e-4, schedule='linear', warmup=10_000, final_fraction=0.0)
  return _laid_out(config, length=512, rows=256, steps=1_000_000, zero_stage=1, remat='selective', fsdp=16)


def _context_128k():
  config = llama.get_config('3.1-8b')
  config.optimizer.update(learning_rate=1e-5, schedule='constant', warmup=200)
  return _laid_out(config, length=131_072, rows=32, steps=5000, fsdp=32, sequence=16)


def _llama_1b_h200():
  config = llama.get_config('3.2-1b')
  config.optimizer.update(learning_rate=3e-4, warmup=2000)
  return _laid_out(config, length=8192, rows=64, steps=100_000, accumulation=16, zero_stage=0, remat='selective')


def _llama_8b_h200_8():
  config = llama.get_config('3.1-8b')
  config.optimizer.update(learning_rate=3e-4, warmup=2000)
  return _laid_out(config, length=8192, rows=128, steps=100_000, accumulation=4, fsdp=8)


def _llama_8b_h200_32():
  config = llama.get_config('3.1-8b')
  config.optimizer.update(learning_rate=3e-4, warmup=2000)
  return _laid_out(config, length=8192, rows=512, steps=100_000, accumulation=4, data=4, fsdp=8)


_CONFIGS = {
  'decoder_8b': _decoder_8b,
  'decoder_70b': _decoder_70b,
  'moe_8x7b': _moe_8x7b,
  't5_11b': _t5_11b,
  'bert_340m': _bert_340m,
  'context_128k': _context_128k,
  'llama_1b_h200': _llama_1b_h200,
  'llama_8b_h200_8': _llama_8b_h200_8,
  'llama_8b_h200_32': _llama_8b_h200_32,
}
