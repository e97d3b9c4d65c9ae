"""Rules in both directions: against plain indexing, and back to every bit."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from interop import rules

D, H, K = 6, 2, 3
RNG = np.random.default_rng(0)


def test_a_linear_layer_multiplies_as_torch_does():
  [weight, _] = rules.dense('q', 'query')
  theirs, x = RNG.standard_normal((H * K, D)), RNG.standard_normal(D)
  [kernel] = weight.split(theirs, [(D, H, K)])
  np.testing.assert_allclose(np.einsum('D,DHK->HK', x, kernel).reshape(-1), theirs @ x)
  [out, _] = rules.dense('o', 'out', inputs=2)
  theirs, x = RNG.standard_normal((D, H * K)), RNG.standard_normal((H, K))
  [kernel] = out.split(theirs, [(H, K, D)])
  np.testing.assert_allclose(np.einsum('HK,HKD->D', x, kernel), theirs @ x.reshape(-1))


@pytest.mark.parametrize('interleaved', [False, True])
def test_fused_projections_come_apart_as_they_are_read(interleaved):
  [weight, bias] = rules.dense('qkv', 'query', 'key', 'value', interleaved=interleaved)
  theirs, x = RNG.standard_normal((3 * H * K, D)), RNG.standard_normal(D)
  y, shapes = theirs @ x, [(D, H, K)] * 3
  # GPT-NeoX, BLOOM: view(heads, 3, head_dim); MPT: chunk(3).
  expected = y.reshape(H, 3, K).swapaxes(0, 1) if interleaved else y.reshape(3, H, K)
  for kernel, part in zip(weight.split(theirs, shapes), expected):
    np.testing.assert_allclose(np.einsum('D,DHK->HK', x, kernel), part)
  for part, of_bias in zip(expected, bias.split(y, [(H, K)] * 3)):
    np.testing.assert_array_equal(of_bias, part)


@hypothesis.given(st.data())
def test_join_undoes_split(data):
  sizes = st.integers(1, 3)
  batch, inputs = data.draw(st.integers(0, 1)), data.draw(st.integers(0, 2))
  parts, interleaved = data.draw(st.integers(1, 3)), data.draw(st.booleans())
  lead = tuple(data.draw(st.tuples(*[sizes] * (batch + inputs))))
  first = data.draw(sizes)
  shapes = [(*lead, first if interleaved else data.draw(sizes), 2) for _ in range(parts)]
  transposed = bool(inputs) and data.draw(st.booleans())
  rule = rules.Rule('x', ('y',) * parts, inputs, transposed, interleaved, batch)
  theirs = RNG.standard_normal(rule.shape(shapes)).astype(np.float32)
  split = rule.split(theirs, shapes)
  assert [part.shape for part in split] == shapes
  joined = rule.join(split)
  assert joined.shape == theirs.shape and joined.tobytes() == theirs.tobytes()


SHAPES = {
  'embedding/table': (5, 4),
  'layers/block_0/a/scale': (2, 4),
  'layers/block_1/a/scale': (2, 4),
  'layers_1/a/scale': (1, 4),
  'layers_1/moe/up/kernel': (1, 3, 4, 6),
}


def test_layers_come_in_the_order_of_the_stack():
  assert rules.layers(SHAPES) == [
    ('layers/block_0', 0), ('layers/block_1', 0), ('layers/block_0', 1), ('layers/block_1', 1), ('layers_1', 0)
  ]  # fmt: skip


def test_tensors_of_layers_and_experts_find_their_place():
  table = (
    *rules.table('wte', 'embedding'),
    *rules.norm('h.{layer}.ln', '{layer}/a'),
    *rules.dense('h.{layer}.experts.{expert}.up', '{layer}/moe/up'),
  )
  found = rules.places(table, SHAPES)
  names = [*(f'h.{i}.ln.weight' for i in range(5)), *(f'h.4.experts.{e}.up.weight' for e in range(3))]
  assert list(found) == ['wte.weight', *names]
  assert found['h.3.ln.weight'].paths == ('layers/block_1/a/scale',) and found['h.3.ln.weight'].index == (1,)
  expert = found['h.4.experts.2.up.weight']
  assert expert.index == (0, 2) and expert.shape == (6, 4)


@pytest.mark.parametrize('more', [(), rules.table('a', 'embedding') + rules.table('b', 'embedding')])
def test_a_table_that_leaves_something_out_or_claims_it_twice_is_a_defect(more):
  with pytest.raises(ValueError, match='do not cover embedding/table'):
    rules.places(more, {'embedding/table': (5, 4)})
