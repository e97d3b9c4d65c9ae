"""Every implementation against the reference over the whole spec, and what the public call promises."""

import dataclasses
import logging
import types

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from harness import covering

from pallas_kernels import AttentionSpec, Device, Shapes, attention, blocks, blockwise, supports, target
from pallas_kernels.attention import _log_choice
from pallas_kernels.tpu import tuning

_LEARNED = ('alibi_slopes', 'bias', 'sinks')
_SIMULATED = {'tpu': Device('tpu', interpret=True)}


def _device(implementation):
  return target(_SIMULATED.get(implementation, Device('cpu')))


@pytest.fixture(autouse=True, scope='module')
def small_blocks():
  """Blocks so small that short sequences already need several, in strips and in loops."""
  patch = pytest.MonkeyPatch()
  patch.setattr(blocks, '_STRIPS', {16: 4, 24: 8})
  patch.setattr(blocks, '_BLOCK', 8)
  patch.setattr(blocks, '_NARROW_BLOCK', 4)
  patch.setattr(blocks, '_MULTIPLE', 1)
  patch.setattr(blockwise, 'on_one_device', lambda: True)
  patch.setattr(blocks, '_TOGETHER', 10)
  patch.setattr(blocks, '_LOGITS', 128)  # of two heads, of one, or of fewer than all query heads of one
  patch.setattr(tuning, '_LANES', 1)
  patch.setattr(tuning, 'CAREFUL', tuning.Tuning(tuning.Blocks(8, 16), tuning.Blocks(16, 8)))
  yield
  patch.undo()


_SHORT = [(19, 19), (40, 40), (24, 7), (1, 33), (31, 40), (5, 1)]
_LONG = [(600, 600), (599, 257), (1, 600), (333, 48), (130, 513), (300, 1)]
_OPTIONS = {
  'batch': [1, 2],
  'kv_heads': [1, 2],
  'groups': [1, 2, 3],
  'head_dim': [1, 8],
  'dtype': [jnp.float32, jnp.bfloat16],
  'causal': [False, True],
  'window': [None, 1, 7, 30],
  'softcap': [None, 2.0],
  'scale': [None, 0.5],
  'segments': [False, True],
  'order': [False, True],
  'slopes': [False, True],
  'sinks': [False, True],
  'dropout_rate': [0.0, 0.3],
  # Whether a bias is of the rows of the batch, of the heads and of the queries.
  'bias': [
    None,
    (True, True, True),
    (False, True, False),
    (True, False, True),
    (False, False, False),
    (False, True, True),
  ],
  'bias_dtype': [jnp.float32, jnp.bfloat16],
}


def _cases(lengths, strength=2):
  """Calls that together hold all pairs (or triples) of options: any head ratio, length and mix of fields."""
  rows = covering.rows({'lengths': lengths, **_OPTIONS}, strength)
  return [types.SimpleNamespace(**row) for row in rows]


def _call(case, seed):
  """Returns (q, k, v, the fields of the spec that are arrays)."""
  random = np.random.default_rng(seed)
  (q_len, kv_len), heads = case.lengths, case.kv_heads * case.groups

  def normal(*shape, dtype=case.dtype):
    return jnp.asarray(random.normal(size=shape), dtype)

  def ids(length, low, high):
    return jnp.asarray(random.integers(low, high, (case.batch, length)), jnp.int32)

  arrays = {}
  if case.segments:
    arrays |= {'q_segment_ids': ids(q_len, 0, 3), 'kv_segment_ids': ids(kv_len, 0, 3)}
  if case.order:
    arrays |= {'q_order': ids(q_len, 0, 40), 'kv_order': ids(kv_len, 0, 40)}
  if case.slopes:
    arrays['alibi_slopes'] = jnp.asarray(random.uniform(0, 0.2, heads), jnp.float32)
  if case.bias is not None:
    shape = [full if own else 1 for own, full in zip(case.bias, (case.batch, heads, q_len), strict=True)]
    arrays['bias'] = normal(*shape, kv_len, dtype=case.bias_dtype)
  if case.sinks:
    arrays['sinks'] = normal(heads, dtype=jnp.float32)
  if case.dropout_rate:
    arrays['dropout_seed'] = jnp.uint32(random.integers(2**32))
    arrays['dropout_offset'] = jnp.asarray(random.integers(0, 2**20, 4), jnp.int32)
  keys = case.batch, kv_len, case.kv_heads, case.head_dim
  return normal(case.batch, q_len, heads, case.head_dim), normal(*keys), normal(*keys), arrays


def _outputs_and_gradients(case, implementation):
  """Returns a compiled function of a call of the case: outputs and all gradients, by name."""
  spec = AttentionSpec(
    causal=case.causal, window=case.window, softcap=case.softcap, scale=case.scale, dropout_rate=case.dropout_rate
  )

  def loss(q, k, v, learned, arrays):
    out, lse = attention(
      q, k, v, dataclasses.replace(spec, **learned, **arrays), implementation=implementation, return_lse=True
    )
    weights = jnp.sin(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)
    finite = jnp.where(lse > -jnp.inf, lse, 0)
    return jnp.sum(out * weights) + jnp.sum(finite * weights[..., 0]), (out, lse)

  gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3), has_aux=True))

  def run(q, k, v, arrays):
    learned = {name: arrays[name] for name in _LEARNED if name in arrays}
    others = {name: array for name, array in arrays.items() if name not in learned}
    with _device(implementation):
      (_, outputs), found = gradients(q, k, v, learned, others)
    return dict(zip(('out', 'lse', 'q', 'k', 'v', 'learned'), (*outputs, *found), strict=True))

  return run


def _assert_close(got, expected, dtype):
  tolerance = 2e-5 if dtype == jnp.float32 else 3e-2
  paths = jax.tree_util.tree_leaves_with_path(expected)
  for (path, want), have in zip(paths, jax.tree.leaves(got), strict=True):
    name = jax.tree_util.keystr(path)
    assert have.dtype == want.dtype and have.shape == want.shape, name
    unit = 2**-7 if want.dtype == jnp.bfloat16 else 0  # a bias may be narrower than the operands, and so its gradient
    want, have = (np.asarray(x, np.float64) for x in (want, have))
    assert np.array_equal(np.isfinite(want), np.isfinite(have)), name
    want, have = (np.where(np.isfinite(x), x, 0) for x in (want, have))
    # The gradient of a slope sums signed terms times distances: ten times as much cancels as in any other.
    allowed = tolerance * max(1, np.abs(want).max()) * (10 if 'alibi_slopes' in name else 1)
    np.testing.assert_allclose(have, want, rtol=unit, atol=allowed, err_msg=name)


def _agree(case, implementations, draws):
  """Compiles a case once for each implementation and compares them for several drawn values."""
  reference, *others = (_outputs_and_gradients(case, name) for name in ('reference', *implementations))

  @hypothesis.given(seed=st.integers(0, 2**16))
  @hypothesis.settings(max_examples=draws)
  def agrees(seed):
    call = _call(case, seed)
    expected = reference(*call)
    for other in others:
      _assert_close(other(*call), expected, case.dtype)

  agrees()


@pytest.mark.parametrize('case', _cases(_SHORT)[:8], ids=range(8))
def test_it_agrees_with_the_reference(case):
  _agree(case, ['blockwise', 'tpu'], draws=2)


@pytest.mark.slow
@pytest.mark.proof()
@pytest.mark.parametrize(
  'implementation, lengths, strength, draws',
  [('blockwise', _SHORT, 3, 5), ('blockwise', _LONG, 2, 2), ('tpu', _SHORT, 2, 4), ('tpu', _LONG[:3], 2, 1)],
  ids=['blockwise-short', 'blockwise-long', 'tpu-short', 'tpu-long'],
)
def test_it_agrees_with_the_reference_at_length(implementation, lengths, strength, draws):
  for case in _cases(lengths, strength):
    _agree(case, [implementation], draws)


def _qkv(batch=2, q_len=19, kv_len=19, heads=4, kv_heads=2, head_dim=8, dtype=jnp.float32):
  keys = jax.random.split(jax.random.key(3), 3)
  shapes = [(batch, q_len, heads, head_dim)] + 2 * [(batch, kv_len, kv_heads, head_dim)]
  return tuple(jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True))


@pytest.mark.parametrize('implementation', ['reference', 'blockwise', 'tpu'])
def test_a_row_that_sees_nothing_gives_zeros_and_zero_gradients_whatever_arrives_for_its_lse(implementation):
  q, k, v = _qkv()
  segments = jnp.ones((2, 19), jnp.int32).at[:, 11:].set(0)
  spec = AttentionSpec(causal=True, q_segment_ids=segments, kv_segment_ids=segments)

  @jax.jit
  def run(q, k, v):
    (out, lse), vjp = jax.vjp(
      lambda *qkv: attention(*qkv, spec, implementation=implementation, return_lse=True), q, k, v
    )
    return out, lse, vjp((jnp.ones_like(out), jnp.where(lse > -jnp.inf, 1.0, 7.0)))

  with _device(implementation):
    out, lse, (d_q, d_k, d_v) = run(q, k, v)
  out, lse = np.asarray(out), np.asarray(lse)
  assert not np.any(out[:, 11:]) and np.all(lse[:, 11:] == -np.inf) and np.all(lse[:, :11] > -np.inf)
  assert all(np.all(np.isfinite(x)) for x in (d_q, d_k, d_v))
  assert not np.any(d_q[:, 11:]) and not np.any(d_k[:, 11:]) and not np.any(d_v[:, 11:])


@pytest.mark.parametrize('implementation', ['reference', 'blockwise', 'tpu'])
def test_parts_of_the_keys_merge_by_their_lse_in_values_and_gradients(implementation):
  q, k, v = _qkv(kv_len=30)
  call = lambda k, v: attention(q, k, v, AttentionSpec(), implementation=implementation, return_lse=True)

  def merged(k, v):
    (out_a, lse_a), (out_b, lse_b) = call(k[:, :13], v[:, :13]), call(k[:, 13:], v[:, 13:])
    lse = jnp.logaddexp(lse_a, lse_b)
    return jnp.exp(lse_a - lse)[..., None] * out_a + jnp.exp(lse_b - lse)[..., None] * out_b

  def with_gradients(f):
    return jax.jit(jax.value_and_grad(lambda k, v: (jnp.sum(jnp.sin(out := f(k, v))), out), (0, 1), has_aux=True))(k, v)

  with _device(implementation):
    ((_, value), gradients), ((_, expected), expected_gradients) = (
      with_gradients(f) for f in (merged, lambda k, v: call(k, v)[0])
    )
  for one, other in zip((value, *gradients), (expected, *expected_gradients), strict=True):
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_dropout_drops_its_share_keeps_the_mean_and_depends_on_the_seed():
  q, k, v = _qkv(q_len=64, kv_len=64)
  q = jnp.zeros_like(q)
  v = jnp.ones_like(v)
  run = jax.jit(lambda seed: attention(q, k, v, AttentionSpec(dropout_rate=0.25, dropout_seed=jnp.uint32(seed))))
  kept = np.asarray(run(1)) * 0.75  # uniform attention to ones: the share of keys kept
  assert abs(kept.mean() - 0.75) < 0.01
  assert 0.03 < kept[..., 0].std() < 0.08  # sqrt(0.75 * 0.25 / 64) = 0.054
  assert np.array_equal(run(1), run(1)) and not np.array_equal(run(1), run(2))
  heads = kept[:, :, :, 0].reshape(-1, 4).T
  assert np.abs(np.corrcoef(heads) - np.eye(4)).max() < 0.4


@pytest.mark.parametrize('implementation', ['reference', 'blockwise', 'tpu'])
def test_parts_drop_what_the_whole_drops(implementation):
  q, k, v = _qkv(kv_len=30)
  spec = AttentionSpec(dropout_rate=0.4, dropout_seed=jnp.uint32(9))

  def run(q, k, v, *offset):
    part = dataclasses.replace(spec, dropout_offset=jnp.asarray(offset, jnp.int32)) if offset else spec
    return attention(q, k, v, part, implementation=implementation, return_lse=True)

  with _device(implementation):
    whole, _ = run(q, k, v)
    part, _ = run(q[1:, 7:, 2:], k[1:, :, 1:], v[1:, :, 1:], 1, 2, 7, 0)
    (first, lse), (second, other) = run(q, k[:, :13], v[:, :13]), run(q, k[:, 13:], v[:, 13:], 0, 0, 0, 13)
  both = jnp.logaddexp(lse, other)
  merged = jnp.exp(lse - both)[..., None] * first + jnp.exp(other - both)[..., None] * second
  np.testing.assert_allclose(part, whole[1:, 7:, 2:], atol=1e-5)
  np.testing.assert_allclose(merged, whole, atol=1e-5)


def test_auto_says_once_what_it_chose(caplog):
  _log_choice.cache_clear()
  with caplog.at_level(logging.INFO, logger='pallas_kernels'):
    for _ in range(3):
      attention(*_qkv(), AttentionSpec())
  assert [record.message for record in caplog.records] == ["attention: 'auto' uses 'blockwise' on cpu"]


def test_supports_answers_for_every_implementation_in_words():
  shapes = Shapes(batch=1, q_len=4, kv_len=4, heads=2, kv_heads=1, head_dim=8)
  reasons = supports(AttentionSpec(), shapes, jnp.bfloat16, Device('cpu'))
  assert reasons['reference'] == reasons['blockwise'] == '' and 'not on cpu' in reasons['tpu']
  assert 'int32' in supports(AttentionSpec(), shapes, jnp.dtype('int32'), Device('cpu'))['blockwise']


@pytest.mark.parametrize(
  'changes, message',
  [
    (
      {'implementation': 'gpu'},
      r"no attention implementation 'gpu'; use 'auto' or one of \['blockwise', 'cudnn', 'hop",
    ),
    ({'k': jnp.zeros((2, 19, 3, 8)), 'v': jnp.zeros((2, 19, 3, 8))}, 'kv_heads must divide heads; got 3'),
    ({'v': jnp.zeros((2, 18, 2, 8))}, 'k, v of one shape'),
    ({'q': jnp.zeros((2, 19, 4, 4))}, 'agree in batch and head_dim'),
    ({'q': jnp.zeros((2, 0, 4, 8))}, 'no empty array'),
    ({'q': jnp.zeros((2, 19, 4, 8), jnp.bfloat16)}, 'one dtype; got bfloat16, float32'),
    ({'spec': AttentionSpec(window=0)}, 'window must be at least 1'),
    ({'spec': AttentionSpec(softcap=-1.0)}, 'softcap must be above 0'),
    ({'spec': AttentionSpec(dropout_rate=1.0)}, r'dropout_rate must be in \[0, 1\)'),
    ({'spec': AttentionSpec(dropout_rate=0.1)}, 'needs dropout_seed'),
    ({'spec': AttentionSpec(dropout_offset=jnp.zeros(3, int))}, r'dropout_offset must have shape \(4,\); got \(3,\)'),
    ({'spec': AttentionSpec(q_segment_ids=jnp.ones((2, 19), int))}, 'q_segment_ids and kv_segment_ids come together'),
    ({'spec': AttentionSpec(sinks=jnp.zeros(2))}, r'sinks must have shape \(4,\); got \(2,\)'),
    ({'spec': AttentionSpec(bias=jnp.zeros((2, 2, 19, 19)))}, r'bias must have shape \(2, 4, 19, 19\)'),
    (
      {'spec': AttentionSpec(q_order=jnp.ones((2, 19)), kv_order=jnp.ones((2, 19)))},
      'q_order must be of integer dtype',
    ),
  ],
)
def test_a_wrong_call_is_refused_in_words(changes, message):
  q, k, v = _qkv()
  call = {'q': q, 'k': k, 'v': v, 'spec': AttentionSpec(), 'implementation': 'auto'} | changes
  implementation = call.pop('implementation')
  with pytest.raises(ValueError, match=message):
    attention(**call, implementation=implementation)


def test_integers_are_refused_by_the_implementation_and_by_auto():
  q, k, v = (x.astype(jnp.int32) for x in _qkv())
  with pytest.raises(ValueError, match="'blockwise' cannot serve this call: .*not int32"):
    attention(q, k, v, AttentionSpec(), implementation='blockwise')
  with pytest.raises(ValueError, match='no attention implementation serves this call'):
    attention(q, k, v, AttentionSpec())
