"""Prefix and permutation language modelling: who sees whom, and what is predicted."""

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings

import objectives
from tests.objectives.material import DOCUMENTS, SPECIAL, objective_config, packed_rows


@settings(max_examples=30)
@given(documents=DOCUMENTS)
def test_a_prefix_sees_itself_and_the_rest_what_is_before_it(documents):
  rows, seeds = packed_rows(*documents, 49)
  batch = objectives.create(objective_config('prefix'), SPECIAL).examples(rows, seeds)
  for tokens, segments, order, positions, labels in zip(
    *(batch[key] for key in ('tokens', 'segment_ids', 'order', 'positions', 'labels')), strict=True
  ):
    for segment in np.unique(segments[segments > 0]):
      own = np.flatnonzero(segments == segment)
      predicted = np.flatnonzero(labels[own] >= 0)
      if not len(predicted):
        assert len(own) == 1  # whose only target is in no slot
        continue
      prefix = predicted[0] + 1
      np.testing.assert_array_equal(order[own], np.where(positions[own] < prefix, 0, positions[own]))
      assert prefix >= 1 and (np.diff(predicted) == 1).all()
      for i in predicted:
        visible = own[order[own] <= order[own[i]]]
        assert visible.max() == own[i] or i < prefix
        if i + 1 < len(own):
          assert labels[own[i]] == tokens[own[i + 1]] and own[i + 1] not in visible


def test_the_split_is_uniform():
  rows, seeds = packed_rows([8] * 3000, 0, 10)
  batch = objectives.create(objective_config('prefix'), SPECIAL).examples(rows, seeds)
  predicted = np.bincount((batch['labels'] >= 0).sum(1), minlength=10)
  assert predicted[0] == 0 and predicted[1:].sum() == 3000
  assert abs(predicted[1:] - 3000 / 9).max() < 4.5 * np.sqrt(3000 / 9)


@settings(max_examples=30)
@given(documents=DOCUMENTS)
def test_each_target_sees_the_context_and_the_targets_before_it(documents):
  rows, seeds = packed_rows(*documents, 48)
  batch = objectives.create(objective_config('permutation'), SPECIAL).examples(rows, seeds)
  assert batch['targets'].shape == (len(seeds), 8)
  for row in range(len(seeds)):
    segments, order, labels = (batch[key][row] for key in ('segment_ids', 'order', 'labels'))
    places = batch['targets'][row][labels >= 0]
    assert len(set(places)) == len(places) == (order > 0).sum() and (order[places] > 0).all()
    np.testing.assert_array_equal(rows['tokens'][row][places], labels[labels >= 0])
    assert SPECIAL.ordinary[labels[labels >= 0]].all()
    for segment in np.unique(segments[places]):
      own = segments == segment
      expected = set(np.flatnonzero(own & (order == 0)))
      for place in sorted(places[own[places]], key=lambda place: order[place]):
        seen = set(np.flatnonzero(own & (order < order[place])))
        assert place not in seen and seen == expected
        expected = seen | {place}


def test_a_sixth_is_predicted_in_spans_of_one_to_five():
  objective = objectives.create(objective_config('permutation'), SPECIAL)
  rows, seeds = packed_rows([5000] * 40, 0, 512)
  batch = objective.examples(rows, seeds)
  predicted = (batch['order'] > 0).sum() / (SPECIAL.ordinary[rows['tokens']] & (rows['segment_ids'] > 0)).sum()
  assert abs(predicted - 1 / 6) < 0.002
  rng, spans = np.random.default_rng(0), []
  for _ in range(300):
    chosen = objective._choose(600, rng)
    spans += [len(span) for span in np.split(chosen, np.flatnonzero(np.diff(chosen) > 1) + 1)]
  # Spans of neighbouring contexts may touch, the last one is cut: nearly uniform.
  shares = np.bincount(spans, minlength=6)[1:6] / len(spans)
  assert abs(shares - 0.2).max() < 0.05
  ranks = batch['order'][:, 1:400]
  first = [row[row > 0][0] / row.max() for row in ranks if (row > 0).any()]
  assert abs(np.mean(first) - 0.5) < 4 * 0.29 / np.sqrt(len(first))


def test_the_permutation_loss_is_of_the_query_stream_at_the_targets():
  class TwoStreams:
    def hidden_two_streams(self, params, stream, targets, rng):
      # A model that knows nothing of a target but how many tokens its query may see.
      order = jnp.take_along_axis(stream.order, targets, axis=1)
      segment = jnp.take_along_axis(stream.segment_ids, targets, axis=1)
      sees = (stream.order[:, None] < order[..., None]) & (stream.segment_ids[:, None] == segment[..., None])
      return jnp.sum(sees, axis=-1)[..., None] * 1.0, {}

    def cross_entropy(self, params, hidden, labels, label_smoothing, z_loss):
      class Result:
        nll = jnp.where(labels >= 0, hidden[..., 0], 0.0)
        total, correct = jnp.sum(nll), labels >= 0

      return Result

  objective = objectives.create(objective_config('permutation'), SPECIAL)
  batch = objective.examples(*packed_rows([30, 10], 0, 48))
  mean, metrics = objective.loss(TwoStreams())({}, batch, None)
  counts = []
  for segment in (1, 2):
    own = batch['segment_ids'][0] == segment
    targets = (batch['order'][0][own] > 0).sum()
    counts += [own.sum() - targets + i for i in range(targets)]
  assert float(metrics['loss'].weight) == len(counts)
  np.testing.assert_allclose(mean, np.mean(counts), rtol=1e-6)
