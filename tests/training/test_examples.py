"""An objective with chance and a label for a whole row: the same examples whatever computes the step."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import data
import objectives
from model import Metric, Stream, Visibility
from objectives import summary
from training import configs, program

MASK, ROWS, LENGTH = 300, 16, 12


@dataclasses.dataclass(frozen=True)
class Masked:
  """Predicts masked bytes, and learns nothing of the row's label but counts it."""

  batch_axes = {
    'tokens': ('batch', 'length'),
    'labels': ('batch', 'length'),
    'segment_ids': ('batch', 'length'),
    'positions': ('batch', 'length'),
    'kind': ('batch',),
  }

  generates = True

  @classmethod
  def from_config(cls, objective_config, special=None):
    return cls()

  @classmethod
  def reserved(cls, objective_config):
    return ()

  def row_length(self, sequence_length):
    return sequence_length

  def examples(self, rows, seeds):
    masked = np.stack([np.random.default_rng(seed).random(rows['tokens'].shape[1]) < 0.3 for seed in seeds])
    masked &= rows['segment_ids'] > 0
    return {
      **rows,
      'tokens': np.where(masked, np.int32(MASK), rows['tokens']),
      'labels': np.where(masked, rows['tokens'], np.int32(-1)),
      'kind': (seeds[:, 2] % 3).astype(np.int32),
    }

  def loss(self, model):
    def loss(params, batch, rng):
      stream = Stream(batch['tokens'], batch['positions'], batch['segment_ids'])
      hidden, metrics = model.hidden(params, stream, rng, Visibility.BIDIRECTIONAL)
      result = model.cross_entropy(params, hidden, batch['labels'])
      masked = jnp.sum(batch['labels'] >= 0, dtype=jnp.float32)
      where = jnp.sum((batch['labels'] + 1.0) * jnp.arange(LENGTH), axis=1) * (1.0 + batch['kind'])
      rows = jnp.float32(len(where))
      metrics |= {
        'loss': Metric(jnp.sum(result.nll), masked),
        'where': Metric(jnp.sum(where), rows),
        'kind': Metric(jnp.sum(batch['kind'], dtype=jnp.float32), rows),
      }
      return result.total / masked, metrics

    return loss

  def summarize(self, metrics, bytes_per_target):
    values = {name: metric.value for name, metric in metrics.items()}
    return values | {'perplexity': summary.perplexity(values['loss'])}


@pytest.fixture
def config(tmp_path, monkeypatch):
  monkeypatch.setitem(objectives.OBJECTIVES, 'causal', Masked)
  (tmp_path / 'text').write_text('\n\n'.join('abcdefgh'[i % 8] * (5 + i % 7) for i in range(120)))
  return functools.partial(configs.load, 'configs/base.py'), [
    'data.corpus=text',
    f'data.path={tmp_path}/text',
    'data.document=blank-line',
    'data.tokenizer=bytes',
    f'data.sequence_length={LENGTH}',
    f'data.batch_tokens={ROWS * LENGTH}',
    'model.vocab_size=320',
    'model.num_layers=1',
    'model.embed_dim=16',
    'model.num_heads=1',
    'optimizer.warmup=0',
  ]


@pytest.mark.slow
def test_masks_are_those_of_the_row_whatever_accumulation_mesh_and_resumption(config):
  load, overrides = config
  masked = Masked()

  def batches(loaded, position=None):
    dataset = data.prepare(loaded.data, masked.row_length(LENGTH), 0)
    stream = data.train_batches(dataset, ROWS, 0, masked.examples)
    if position:
      stream.set_state(position)
    return stream

  stream = batches(load(overrides))
  first = [next(stream) for _ in range(2)]
  position = stream.get_state()
  later = next(stream)
  stream.close()
  resumed = batches(load(overrides), position)
  jax.tree.map(np.testing.assert_array_equal, next(resumed), later)
  resumed.close()
  assert 0.2 < np.mean(np.stack([batch['labels'] for batch in first]) >= 0) < 0.4
  assert not np.array_equal(first[0]['labels'] >= 0, first[1]['labels'] >= 0)

  results = []
  for extra in (
    ('mesh.data=1',),
    ('mesh.data=1', 'optimizer.accumulation_steps=4'),
    ('mesh.data=8',),
    ('mesh.data=2', 'optimizer.accumulation_steps=2'),
  ):
    compiled = program.build(load([*overrides, *extra]))
    state, reported = compiled.init(), []
    for batch in first:
      state, metrics = compiled.step(state, jax.device_put(batch, compiled.batch_shardings))
      reported.append({name: metric.value for name, metric in jax.device_get(metrics).items()})
    results.append(reported)
  for other in results[1:]:
    for one, another in zip(results[0], other, strict=True):
      assert (one['where'], one['kind']) == (another['where'], another['kind'])
      for name in ('loss', 'total_loss', 'grad_norm'):
        np.testing.assert_allclose(another[name], one[name], rtol=1e-4)
