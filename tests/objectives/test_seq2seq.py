"""Pairs from files to packed batches, and the loss of encoder-decoders."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import data
import objectives
from configs import base
from data import packing
from model import Metric
from tests.objectives.material import SPECIAL, labels, objective_config, segments

PAIRS = [('a' * (1 + i % 7) + str(i), 'b' * (1 + i % 11) + str(i)) for i in range(60)]


def pairs_config(tmp_path, **keys):
  (tmp_path / 'pairs.jsonl').write_text('\n'.join(json.dumps({'source': s, 'target': t}) for s, t in PAIRS))
  config = base.get_config().data
  config.update(
    {'corpus': 'pairs', 'path': f'{tmp_path}/pairs.jsonl', 'tokenizer': 'bytes', 'cache_dir': f'{tmp_path}/cache'}
    | keys
  )
  return config


def decoded(batch, tokenizer):
  """The pairs of a batch, read from what the encoder sees and what the decoder is to predict."""
  found = []
  for row in range(len(batch['labels'])):
    sources, targets = segments(batch, row, 'source_'), labels(batch, row)
    assert set(sources) == set(targets)
    for i, source in sources.items():
      assert source[-1] == targets[i][-1] == tokenizer.eos_id
      assert segments(batch, row)[i] == [tokenizer.special.start_id, *targets[i][:-1]]
      found.append((tokenizer.decode(source), tokenizer.decode(targets[i])))
  return found


def test_every_pair_is_delivered_once_an_epoch_packed_on_both_sides(tmp_path):
  config = pairs_config(tmp_path, target_length=40)
  dataset = data.prepare(config, 24, 0)
  objective = objectives.create(objective_config('seq2seq'), dataset.tokenizer.special)
  batches = data.train_batches(dataset, dataset.num_rows, 0, objective.examples)
  batch = next(batches)
  batches.close()
  assert batch['source_tokens'].shape[1] == 24 and batch['labels'].shape[1] == 40
  evaluated = list(data.eval_batches(dataset.validation, 24, 2, 'documents', 0, objective.examples, 40))
  found = decoded(batch, dataset.tokenizer)
  assert len(found) == dataset.train.num_documents
  assert sorted(found + [pair for b in evaluated for pair in decoded(b, dataset.tokenizer)]) == sorted(PAIRS)
  assert dataset.report['slots_used'] > 0.7 and dataset.report['left_out'] == 0
  scored = sum(int((b['labels'] >= 0).sum()) for b in evaluated)
  assert scored == dataset.validation.num_targets
  again = data.pair_split(config.path, dataset.tokenizer, config)
  [whole] = data.eval_batches(again, 24, 60, 'documents', 0, objective.examples, 40)
  assert sorted(decoded(whole, dataset.tokenizer)) == sorted(PAIRS)


def test_pairs_too_long_for_a_row_are_left_out_and_counted(tmp_path):
  dataset = data.prepare(pairs_config(tmp_path, validation_fraction=0.0), 8, 0)
  fitting = [pair for pair in PAIRS if max(map(len, pair)) < 8]
  assert dataset.report['left_out'] == len(PAIRS) - len(fitting) > 0
  assert len(dataset.rows[0].lengths) == len(fitting)
  with pytest.raises(ValueError, match='no pair of .* fits into a row; raise data.sequence_length'):
    data.prepare(pairs_config(tmp_path), 2, 0)


@settings(max_examples=50)
@given(
  pairs=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=40),
  limits=st.tuples(st.integers(2, 40), st.integers(2, 40)),
)
def test_packed_pairs_fit_on_both_sides(pairs, limits):
  sources, targets = (np.cumsum([0, *(pair[side] + 1 for pair in pairs)]) for side in (0, 1))
  rows = packing.pack_pairs(sources, targets, *limits)
  for side, limit in ((rows.source, limits[0]), (rows, limits[1])):
    assert all(side.lengths[a:b].sum() <= limit for a, b in zip(side.offsets[:-1], side.offsets[1:], strict=True))
  fitting = [i for i, pair in enumerate(pairs) if all(n + 1 <= limit for n, limit in zip(pair, limits, strict=True))]
  np.testing.assert_array_equal(np.sort(rows.starts), targets[fitting] + 1)
  packed = np.searchsorted(targets, rows.starts) - 1
  np.testing.assert_array_equal(rows.source.starts, sources[packed] + 1)
  np.testing.assert_array_equal(rows.lengths, np.diff(targets)[packed])


@pytest.mark.parametrize(
  'text, keys',
  [
    ('source\tnote\ttarget\na b\tx\tc\n\nd\ty\te f\n', {}),
    ('a b\tx\tc\nd\ty\te f', {'source_field': '0', 'target_field': '2'}),
  ],
)
def test_columns_of_a_tsv_are_named_by_its_header_or_by_number(tmp_path, text, keys):
  (tmp_path / 'pairs.tsv').write_text(text)
  config = pairs_config(tmp_path, path=f'{tmp_path}/pairs.tsv', validation_fraction=0.0, **keys)
  dataset = data.prepare(config, 16, 0)
  decode = dataset.tokenizer.decode
  split = dataset.train
  found = [(decode(split.source.store[i]), decode(split.store[i])) for i in range(split.num_documents)]
  assert found == [('a b', 'c'), ('d', 'e f')]


@pytest.mark.parametrize(
  'name, text, keys, said',
  [
    ('p.tsv', 'source\ttarget\na\n', {}, r'p.tsv:2: 1 columns, but the first line has 2'),
    ('p.tsv', 'x\ttarget\na\tb\n', {}, r"no field 'source'; there are 'x', 'target'.*--config.data.source_field=NAME"),
    ('p.jsonl', '{"source": "a"}', {}, '--config.data.target_field=NAME'),
    ('p.jsonl', '{"source": "a", "target": "b"}', {'packing': 'none'}, 'set data.packing=documents'),
  ],
)
def test_files_without_pairs_are_refused_in_words(tmp_path, name, text, keys, said):
  (tmp_path / name).write_text(text)
  with pytest.raises(ValueError, match=said):
    data.prepare(pairs_config(tmp_path, path=f'{tmp_path}/{name}', **keys), 16, 0)


@dataclasses.dataclass
class Bigrams:
  """A stand-in for an encoder-decoder: logits by the decoder's input and the mean of its segment's source."""

  def hidden(self, params, source, target, rng):
    same = (target.segment_ids[..., None] == source.segment_ids[:, None]) & (source.segment_ids[:, None] > 0)
    share = same / jnp.maximum(same.sum(-1, keepdims=True), 1)
    hidden = params['target'][target.tokens] + jnp.einsum('BTS,BSV->BTV', share, params['source'][source.tokens])
    return hidden, {'aux/balance_loss': Metric(jnp.float32(0.5), jnp.float32(2.0)), 'load': Metric(1.0, 1.0)}

  def cross_entropy(self, params, hidden, labels, label_smoothing, z_loss):
    class Result:
      nll = -jnp.take_along_axis(jax.nn.log_softmax(hidden), jnp.maximum(labels, 0)[..., None], axis=-1)[..., 0]
      nll = jnp.where(labels >= 0, nll, 0.0)
      correct = hidden.argmax(-1) == labels
      total = nll.sum()

    return Result


def test_the_loss_is_of_each_target_given_its_own_source(tmp_path):
  rng, size = np.random.default_rng(0), len(SPECIAL.ordinary)
  params = {side: rng.normal(size=(size, size)).astype(np.float32) for side in ('source', 'target')}
  sources, targets = [[5, 6, 7], [8, 9]], [[20, 21, SPECIAL.eos_id], [22, SPECIAL.eos_id]]
  rows = {}
  for prefix, pieces, length in (('source_', sources, 6), ('', targets, 7)):
    rows |= {
      f'{prefix}{name}': np.array([values + [0] * (length - len(values))], np.int32)
      for name, values in (
        ('tokens', sum(pieces, [])),
        ('segment_ids', [i for i, piece in enumerate(pieces, 1) for _ in piece]),
        ('positions', [i for piece in pieces for i in range(len(piece))]),
      )
    }
  objective = objectives.create(objective_config('seq2seq'), SPECIAL)
  batch = objective.examples(rows, np.zeros((1, 3), np.int64))
  mean, metrics = objective.loss(Bigrams())(params, batch, None)
  expected = []
  for source, target in zip(sources, targets, strict=True):
    for before, token in zip([SPECIAL.start_id, *target], target, strict=False):
      logits = np.float64(params['target'][before]) + np.float64(params['source'][source]).mean(0)
      expected.append(np.log(np.exp(logits).sum()) - logits[token])
  np.testing.assert_allclose(metrics['loss'].total / metrics['loss'].weight, np.mean(expected), rtol=1e-5)
  np.testing.assert_allclose(mean, np.mean(expected) + 0.25, rtol=1e-5)
