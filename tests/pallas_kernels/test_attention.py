"""Every implementation against the reference over the whole spec, and what the public call promises."""

import dataclasses
import logging

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
  patch.setattr(
    tuning, 'CAREFUL', tuning.Tuning(tuning.Blocks(8, 16), tuning.Blocks(16, 8))
  )
  yield
  patch.undo()


@st.composite
def _calls(draw, longest=40):
  """Returns (q, k, v, spec) of any head ratio, length and mix of fields."""
  random = np.random.default_rng(draw(st.integers(0, 2**16)))
  batch, kv_heads, groups = draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.integers(1, 3))
  q_len, kv_len = draw(st.integers(1, longest)), draw(st.integers(1, longest))
  heads, head_dim = kv_heads * groups, draw(st.sampled_from([1, 8]))
  dtype = draw(st.sampled_from([jnp.float32, jnp.bfloat16]))

  def normal(*shape, dtype=dtype):
    return jnp.asarray(random.normal(size=shape), dtype)

  def ids(length, low, high):
    return jnp.asarray(random.integers(low, high, (batch, length)), jnp.int32)

  spec = {
    'causal': draw(st.booleans()),
    'window': draw(st.sampled_from([None, 1, 7, 30])),
    'softcap': draw(st.sampled_from([None, 2.0])),
    'scale': draw(st.sampled_from([None, 0.5])),
  }
  if draw(st.booleans()):
    spec |= {'q_segment_ids': ids(q_len, 0, 3), 'kv_segment_ids': ids(kv_len, 0, 3)}
  if draw(st.booleans()):
    spec |= {'q_order': ids(q_len, 0, 40), 'kv_order': ids(kv_len, 0, 40)}
  if draw(st.booleans()):
    spec['alibi_slopes'] = jnp.asarray(random.uniform(0, 0.2, heads), jnp.float32)
  if draw(st.booleans()):
    shape = [draw(st.sampled_from([1, full])) for full in (batch, heads, q_len)]
    spec['bias'] = normal(*shape, kv_len, dtype=draw(st.sampled_from([jnp.float32, jnp.bfloat16])))
  if draw(st.booleans()):
    spec['sinks'] = normal(heads, dtype=jnp.float32)
  if draw(st.booleans()):
    spec |= {'dropout_rate': 0.3, 'dropout_seed': jnp.uint32(random.integers(2**32))}
    if draw(st.booleans()):
      spec['dropout_offset'] = jnp.asarray(random.integers(0, 2**20, 4), jnp.int32)
  q, k, v = normal(batch, q_len, heads, head_dim), *(normal(batch, kv_len, kv_heads, head_dim) for _ in 'kv')
  return q, k, v, AttentionSpec(**spec)


def _outputs_and_gradients(q, k, v, spec, implementation):
  learned = {name: getattr(spec, name) for name in _LEARNED if getattr(spec, name) is not None}

  def loss(q, k, v, learned):
    out, lse = attention(
      q, k, v, dataclasses.replace(spec, **learned), implementation=implementation, return_lse=True
    )
    weights = jnp.sin(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)
    finite = jnp.where(lse > -jnp.inf, lse, 0)
    return jnp.sum(out * weights) + jnp.sum(finite * weights[..., 0]), (out, lse)

  with _device(implementation):
    (_, outputs), gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3), has_aux=True))(q, k, v, learned)
  return dict(zip(('out', 'lse', 'q', 'k', 'v', 'learned'), (*outputs, *gradients), strict=True))


def _assert_close(got, expected, dtype):
  tolerance = 2e-5 if dtype == jnp.float32 else 3e-2
  paths = jax.tree_util.tree_leaves_with_path(expected)
  for (path, want), have in zip(paths, jax.tree.leaves(got), strict=True):
    name = jax.tree_util.keystr(path)
    assert have.dtype == want.dtype and have.shape == want.shape, name
    want, have = (np.asarray(x, np.float64) for x in (want, have))
    assert np.array_equal(np.isfinite(want), np.isfinite(have)), name
    want, have = (np.where(np.isfinite(x), x, 0) for x in (want, have))
    # The gradient of a slope sums signed terms times distances: much more cancels than in the others.
    allowed = tolerance * max(1, np.abs(want).max()) * (4 if 'alibi_slopes' in name else 1)
    np.testing.assert_allclose(have, want, rtol=0, atol=allowed, err_msg=name)


@pytest.mark.parametrize('implementation', ['blockwise', 'tpu'])
@hypothesis.given(call=_calls())
@hypothesis.settings(max_examples=8)
def test_it_agrees_with_the_reference(implementation, call):
  _check(implementation, *call)


@pytest.mark.slow
@pytest.mark.parametrize('implementation, longest, examples', [
  ('blockwise', 40, 200), ('blockwise', 600, 30), ('tpu', 40, 60), ('tpu', 600, 15),
])
def test_it_agrees_with_the_reference_at_length(implementation, longest, examples):
  @hypothesis.given(call=_calls(longest))
  @hypothesis.settings(max_examples=examples)
  def agrees(call):
    _check(implementation, *call)

  agrees()


def _check(implementation, q, k, v, spec):
  expected = _outputs_and_gradients(q, k, v, spec, 'reference')
  got = _outputs_and_gradients(q, k, v, spec, implementation)
  _assert_close(got, expected, q.dtype)


def _qkv(batch=2, q_len=19, kv_len=19, heads=4, kv_heads=2, head_dim=8, dtype=jnp.float32):
  keys = jax.random.split(jax.random.key(3), 3)
  shapes = [(batch, q_len, heads, head_dim)] + 2 * [(batch, kv_len, kv_heads, head_dim)]
  return tuple(jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True))


@pytest.mark.parametrize('implementation', ['reference', 'blockwise', 'tpu'])
def test_a_row_that_sees_nothing_gives_zeros_and_zero_gradients_whatever_arrives_for_its_lse(implementation):
  q, k, v = _qkv()
  segments = jnp.ones((2, 19), jnp.int32).at[:, 11:].set(0)
  spec = AttentionSpec(causal=True, q_segment_ids=segments, kv_segment_ids=segments)

  def run(q, k, v):
    return attention(q, k, v, spec, implementation=implementation, return_lse=True)

  with _device(implementation):
    (out, lse), vjp = jax.vjp(run, q, k, v)
    d_q, d_k, d_v = vjp((jnp.ones_like(out), jnp.where(lse > -jnp.inf, 1.0, 7.0)))
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

  with _device(implementation):
    np.testing.assert_allclose(merged(k, v), call(k, v)[0], atol=1e-5)
    gradients = [jax.grad(lambda k, v, f=f: jnp.sum(jnp.sin(f(k, v))), (0, 1))(k, v)
                 for f in (merged, lambda k, v: call(k, v)[0])]
  for one, other in zip(*gradients, strict=True):
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_dropout_drops_its_share_keeps_the_mean_and_depends_on_the_seed():
  q, k, v = _qkv(q_len=64, kv_len=64)
  q = jnp.zeros_like(q)
  v = jnp.ones_like(v)
  run = lambda seed: attention(q, k, v, AttentionSpec(dropout_rate=0.25, dropout_seed=jnp.uint32(seed)))
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


@pytest.mark.parametrize('changes, message', [
  ({'implementation': 'gpu'}, r"no attention implementation 'gpu'; use 'auto' or one of \['blockwise', 'cudnn', 'hop"),
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
  ({'spec': AttentionSpec(q_order=jnp.ones((2, 19)), kv_order=jnp.ones((2, 19)))}, 'q_order must be of integer dtype'),
])
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
