"""What train_gpu trains: configs of configs/ on one H200, and their data."""

import dataclasses

import jax
import numpy as np

import objectives
from benchmarks import plain_configs


@dataclasses.dataclass(frozen=True)
class Case:
  """A model to train on one GPU.

  Attributes:
    name: of the case.
    config: file of configs/ and variant.
    length: tokens of a row.
    rows: of a step; there is no accumulation.
    remat: as `model.remat`.
    optimizer: as `optimizer.name`; learning rate and the rest are the config's.
    anchor: tokens/s somebody else published for one GPU; 0 = nothing to compare with.
    anchor_source: who, and on what.
  """

  name: str
  config: tuple
  length: int
  rows: int
  remat: str
  anchor: float
  anchor_source: str
  optimizer: str = 'adamw'


CASES = (
  Case('gpt2 124M', ('gpt2', ''), 1024, 64, 'none', 460_000, 'llm.c, H100'),
  Case('llama 1B', ('llama', '1b'), 2048, 16, 'none', 42_000, 'SmolLM playbook, H100s'),
  Case('llama3 8B', ('llama', '8b'), 4096, 4, 'full', 10_471, 'KempnerForge, H200, 57.8% MFU as it counts'),
)


def config(case: Case, dry_run: bool):
  """The whole config: the file's, on one device, with the case's sizes; tiny and quick to compile for a dry run."""
  config = plain_configs.load(*case.config)
  config.model.update(remat=case.remat, layer_loop='scan', max_length=case.length)
  if dry_run:
    config.model.update(num_layers=2, embed_dim=64, num_heads=4, mlp_dim=128, vocab_size=512)
    if config.model.num_kv_heads:
      config.model.num_kv_heads = 2
  config.data.update(sequence_length=case.length, batch_tokens=case.rows * case.length)
  # The cosine schedule has no use for the share of the run that `decay` is by default.
  config.optimizer.update(accumulation_steps=1, name=case.optimizer, decay=0)
  config.mesh.update(data=1, fsdp=1)
  config.zero_stage = 0
  return config


def shrunk(case: Case) -> Case:
  """The case for a dry run."""
  return dataclasses.replace(case, length=128, rows=2, anchor=0.0, anchor_source='')


def batch_shape(case: Case) -> dict:
  """Shape and dtype of what a step takes."""
  return {name: jax.ShapeDtypeStruct((case.rows, case.length), np.int32) for name in objectives.Causal.batch_axes}


def batches(case: Case, vocab_size: int, count: int = 8) -> list[dict]:
  """Random tokens, as frequent as words are (Zipf 1949, with Mandelbrot's shift), a row being one document."""
  random = np.random.default_rng(0)
  weights = np.cumsum(1 / (np.arange(vocab_size) + 2.7))
  names = random.permutation(vocab_size).astype(np.int32)
  shape = (case.rows, case.length + 1)
  return [
    objectives.Causal().examples(
      {
        'tokens': names[np.searchsorted(weights, random.random(shape) * weights[-1], side='right')],
        'segment_ids': np.ones(shape, np.int32),
        'positions': np.tile(np.arange(shape[1], dtype=np.int32), (shape[0], 1)),
      },
      None,
    )
    for _ in range(count)
  ]
