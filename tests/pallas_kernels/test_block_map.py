"""The map of blocks against the dense mask it sums up."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from harness import covering

from pallas_kernels import AttentionSpec, Shapes
from pallas_kernels.block_map import HIDDEN, PARTLY, WHOLLY, block_map, visible_blocks
from pallas_kernels.reference import _mask_and_bias

# Fixed, because each is compiled anew: with them all pairs of lengths, sizes of blocks and indices are seen.
_CASES = covering.rows(
  {
    'q_len': [1, 8, 13, 30],
    'kv_len': [1, 7, 20, 30],
    'q_size': [1, 4, 7],
    'k_size': [1, 4, 7],
    'causal': [False, True],
    'window': [None, 1, 4, 11],
  }
)


def _shapes(q_len, kv_len):
  return Shapes(batch=2, q_len=q_len, kv_len=kv_len, heads=1, kv_heads=1, head_dim=1)


def _dense(spec, shapes, q_size, k_size):
  """What the mask says of each block: whether it has visible places, whether it has none that are hidden."""
  full = (shapes.batch, shapes.heads, shapes.q_len, shapes.kv_len)
  visible = np.broadcast_to(_mask_and_bias(spec, full, jnp.float32)[0], full)[:, 0]
  padding = ((0, 0), (0, 0), (0, -shapes.kv_len % k_size))
  visible = np.pad(visible, padding)
  blocks = [
    [visible[:, i : i + q_size, j : j + k_size] for j in range(0, shapes.kv_len, k_size)]
    for i in range(0, shapes.q_len, q_size)
  ]
  return (np.stack([np.stack([f(x, axis=(1, 2)) for x in row], -1) for row in blocks], 1) for f in (np.any, np.all))


def _split(case):
  """Fields of the spec, and lengths with sizes of blocks."""
  return (
    {name: case[name] for name in ('causal', 'window')},
    tuple(case[name] for name in ('q_len', 'kv_len', 'q_size', 'k_size')),
  )


@pytest.mark.parametrize('case', _CASES, ids=range(len(_CASES)))
def test_indices_are_summed_up_exactly_and_before_anything_is_traced(case):
  fields, sizes = _split(case)
  spec, shapes = AttentionSpec(**fields), _shapes(*sizes[:2])
  kinds = block_map(spec, shapes, *sizes[2:])
  some, every = (x[:1] for x in _dense(spec, shapes, *sizes[2:]))
  assert isinstance(kinds, np.ndarray) and kinds.dtype == np.int32
  np.testing.assert_array_equal(kinds, np.where(every, WHOLLY, np.where(some, PARTLY, HIDDEN)))


@hypothesis.given(st.sampled_from(_CASES), st.integers(0, 2**16), st.booleans(), st.booleans())
@hypothesis.settings(max_examples=25)
def test_segments_and_orders_never_hide_what_is_visible_nor_show_what_is_hidden(case, seed, segments, orders):
  fields, sizes = _split(case)
  random, shapes = np.random.default_rng(seed), _shapes(*sizes[:2])
  ids = lambda length, high: jnp.asarray(np.sort(random.integers(0, high, (2, length)), axis=1), jnp.int32)
  if segments:
    fields = fields | {'q_segment_ids': ids(sizes[0], 4), 'kv_segment_ids': ids(sizes[1], 4)}
  if orders:
    fields = fields | {'q_order': ids(sizes[0], 30), 'kv_order': ids(sizes[1], 30)}
  spec = AttentionSpec(**fields)
  kinds = np.asarray(jax.jit(block_map, static_argnums=(1, 2, 3))(spec, shapes, *sizes[2:]))
  some, every = _dense(spec, shapes, *sizes[2:])
  assert kinds.dtype == np.int32 and not np.any(some & (kinds == HIDDEN)) and np.all(every | (kinds != WHOLLY))


def test_sorted_segments_are_found_hidden_and_whole():
  ids = jnp.asarray([[1] * 8 + [2] * 8 + [0] * 8])
  kinds = block_map(AttentionSpec(q_segment_ids=ids, kv_segment_ids=ids), _shapes(24, 24), 8, 8)
  np.testing.assert_array_equal(kinds, [np.diag([WHOLLY, WHOLLY, HIDDEN])])


@hypothesis.given(st.integers(0, 2**16), st.sampled_from([(1, 1), (1, 4), (2, 1), (3, 3), (5, 4), (4, 5)]))
def test_lists_hold_the_visible_blocks_in_order_and_then_the_last_again(seed, sizes):
  q_blocks, k_blocks = sizes
  kinds = np.random.default_rng(seed).integers(0, 3, (2, q_blocks, k_blocks)).astype(np.int32)
  blocks, counts = visible_blocks(kinds)
  assert blocks.shape[-1] == max(1, counts.max())
  for place in np.ndindex(2, q_blocks):
    visible = np.flatnonzero(kinds[place]).tolist()
    last = visible[-1:] or [0]
    assert counts[place] == len(visible)
    assert blocks[place].tolist() == visible + last * (blocks.shape[-1] - len(visible))
  traced = jax.jit(visible_blocks, static_argnums=1)(kinds, blocks.shape[-1])
  np.testing.assert_array_equal(traced[0], blocks)
  np.testing.assert_array_equal(traced[1], counts)
