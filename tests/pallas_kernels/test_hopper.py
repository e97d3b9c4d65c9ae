"""The Hopper kernels through the interpreter of Mosaic GPU, which also looks for races, against the reference."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic_gpu.interpret import interpret_pallas_call
from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

from pallas_kernels import AttentionSpec, Device, Shapes, attention, cudnn, hopper, reference, target
from pallas_kernels.block_map import block_map
from pallas_kernels.hopper import decode, tuning
from pallas_kernels.hopper.kernel import registers, visible_ranges

_H200 = Device('gpu', 'NVIDIA H200')
_LEARNED = ('alibi_slopes', 'bias', 'sinks')


def _call(q_len=200, kv_len=None, *, batch=1, heads=2, kv_heads=1, head_dim=64, dtype=jnp.bfloat16, **spec):
  """Returns (q, k, v, spec); arrays of the spec are given by the shape 'random' or as numpy."""
  random = np.random.default_rng(0)
  kv_len = kv_len or q_len
  shapes = [(batch, q_len, heads, head_dim)] + 2 * [(batch, kv_len, kv_heads, head_dim)]
  q, k, v = (jnp.asarray(random.normal(size=shape), dtype) for shape in shapes)
  spec = {name: jnp.asarray(x) if isinstance(x, np.ndarray) else x for name, x in spec.items()}
  return q, k, v, AttentionSpec(**spec)


def _normal(*shape):
  return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def _integers(low, high, *shape, ordered=False):
  drawn = np.random.default_rng(2).integers(low, high, shape).astype(np.int32)
  return np.sort(drawn, axis=1) if ordered else drawn


def _outputs_and_gradients(q, k, v, spec, implementation):
  learned = {name: getattr(spec, name) for name in _LEARNED if getattr(spec, name) is not None}

  def loss(q, k, v, learned):
    out, lse = attention(q, k, v, dataclasses.replace(spec, **learned), implementation=implementation, return_lse=True)
    weights = jnp.sin(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)
    finite = jnp.where(lse > -jnp.inf, lse, 0)
    return jnp.sum(out * weights) + jnp.sum(finite * weights[..., 0]), (out, lse)

  gradients, (out, lse) = jax.jit(jax.grad(loss, (0, 1, 2, 3), has_aux=True))(q, k, v, learned)
  return {'out': out, 'lse': lse, **dict(zip('qkv', gradients, strict=False)), **gradients[3]}


def _check(q, k, v, spec):
  expected = _outputs_and_gradients(q, k, v, spec, 'reference')
  interpret_pallas_call.reset_gpu_interpret_mode_state()
  with target(dataclasses.replace(_H200, interpret=InterpretGPUParams(detect_races=True))):
    got = _outputs_and_gradients(q, k, v, spec, 'hopper')
  assert not interpret_pallas_call.get_races().races_found
  for name, want in expected.items():
    have = got[name]
    assert have.dtype == want.dtype and have.shape == want.shape, name
    want, have = (np.asarray(x, np.float32) for x in (want, have))
    assert np.array_equal(np.isfinite(want), np.isfinite(have)), name
    want, have = (np.where(np.isfinite(x), x, 0) for x in (want, have))
    tolerance = 3e-4 if name == 'lse' else 1.2e-2  # bfloat16 keeps 8 bits; the lse is float32 of bfloat16 products
    np.testing.assert_allclose(have, want, rtol=0, atol=tolerance * max(1, np.abs(want).max()), err_msg=name)


@pytest.mark.proof()
def test_causal_grouped_heads_of_a_length_that_divides_nothing():
  _check(*_call(75, causal=True))


_SEGMENTS = _integers(0, 4, 2, 200, ordered=True)
_ORDER = _integers(0, 60, 1, 200)
_CASES = {
  'several blocks': lambda: _call(300, causal=True),
  'fewer queries than keys': lambda: _call(70, 300, causal=True),
  'more queries than keys': lambda: _call(300, 70, causal=True),
  'full': lambda: _call(130, 200, heads=2, kv_heads=2),
  'segments': lambda: _call(batch=2, causal=True, q_segment_ids=_SEGMENTS, kv_segment_ids=_SEGMENTS),
  'orders in a window': lambda: _call(q_order=_ORDER, kv_order=_ORDER, window=20),
  'window, soft-cap and sinks': lambda: _call(causal=True, window=50, softcap=5.0, sinks=_normal(2)),
  'window of both sides': lambda: _call(window=50),
  'a bias for all rows of the batch': lambda: _call(batch=2, bias=_normal(1, 2, 200, 200)),
  'a bias of keys': lambda: _call(batch=2, causal=True, bias=_normal(2, 1, 1, 200)),
  'slopes': lambda: _call(causal=True, alibi_slopes=np.asarray([0.1, 0.02], np.float32)),
  'dropout': lambda: _call(causal=True, dropout_rate=0.3, dropout_seed=jnp.uint32(77)),
  'dropout in a part of a larger call': lambda: _call(
    70,
    130,
    batch=2,
    heads=1,
    dropout_rate=0.3,
    dropout_seed=jnp.uint32(77),
    dropout_offset=np.asarray([3, 1, 90, 7], np.int32),
  ),
  'head_dim 96': lambda: _call(130, head_dim=96, causal=True),
  'head_dim 128': lambda: _call(130, head_dim=128, causal=True),
  'head_dim 192': lambda: _call(130, head_dim=192, causal=True, heads=1),
  'head_dim 256': lambda: _call(130, head_dim=256, causal=True, heads=1),
  'float16': lambda: _call(130, dtype=jnp.float16, causal=True),
}


@pytest.mark.slow
@pytest.mark.proof()
@pytest.mark.parametrize('case', _CASES)
def test_it_agrees_with_the_reference_without_races(case):
  _check(*_CASES[case]())


@pytest.mark.parametrize('warpgroups', [1, 2, 3, 4])
def test_warpgroups_ask_for_no_more_registers_than_a_kernel_starts_with(warpgroups):
  loading, computing = registers(warpgroups)
  started = 65536 // (128 * (warpgroups + 1)) // 8 * 8
  assert loading + warpgroups * computing <= (warpgroups + 1) * started
  assert loading % 8 == computing % 8 == 0 and 24 <= loading <= started <= 256 and loading <= computing <= 240


@pytest.mark.slow
@pytest.mark.proof()
def test_decoding_splits_the_keys_and_merges_them(monkeypatch):
  monkeypatch.setattr(decode, '_SHORTEST_PART', 128)
  _check(*_call(2, 256, heads=2, causal=True, window=140, sinks=_normal(2)))


@pytest.mark.parametrize(
  'fields',
  [
    {},
    {'causal': True},
    {'causal': True, 'window': 30},
    {'q_segment_ids': _SEGMENTS[:, :3], 'kv_segment_ids': _SEGMENTS},
    {'q_order': _SEGMENTS[:, 100:103], 'kv_order': _SEGMENTS, 'window': 2},
    {'softcap': 2.0, 'sinks': _normal(4)},
  ],
)
def test_decoding_is_attention_in_another_shape(fields, monkeypatch):
  monkeypatch.setattr(decode, '_SHORTEST_PART', 50)
  q, k, v, spec = _call(3, 200, batch=2, heads=4, kv_heads=2, dtype=jnp.float32, **fields)
  core = lambda *call: reference.attend(*call)
  expected, lse = reference.attend(q, k, v, spec)
  got = decode.attend(core, q, k, v, spec)
  assert decode.serves(spec, 3)
  np.testing.assert_allclose(got[0], expected, atol=1e-5)
  np.testing.assert_allclose(got[1], lse, atol=1e-5)


@pytest.mark.parametrize(
  'fields',
  [{'window': 5}, {'causal': True, 'q_order': _ORDER[:, :3], 'kv_order': _ORDER}, {'alibi_slopes': _normal(2)}],
)
def test_what_decoding_cannot_say_in_orders_goes_the_long_way(fields):
  assert not decode.serves(_call(3, 200, **fields)[3], 3) and not decode.serves(AttentionSpec(), 9)


@pytest.mark.parametrize(
  'spec',
  [
    AttentionSpec(),
    AttentionSpec(causal=True),
    AttentionSpec(window=100),
    AttentionSpec(causal=True, window=300),
    AttentionSpec(
      q_segment_ids=jnp.asarray(_integers(0, 3, 2, 500, ordered=True)),
      kv_segment_ids=jnp.asarray(_integers(0, 3, 2, 700, ordered=True)),
    ),
  ],
)
def test_ranges_cover_what_is_visible_and_leave_unmasked_only_what_wholly_is(spec):
  kinds = np.asarray(block_map(spec, Shapes(2, 500, 700, 1, 1, 64), 128, 64))
  ranges = np.asarray(visible_ranges(kinds))
  for batch, row in np.ndindex(ranges.shape[:2]):
    start, whole_start, whole_end, end, zero = ranges[batch, row]
    assert 0 <= start <= whole_start <= whole_end <= end <= kinds.shape[2] and start < end and zero == 0
    assert np.all(kinds[batch, row, whole_start:whole_end] == 2)
    assert not np.any(kinds[batch, row, :start]) and not np.any(kinds[batch, row, end:])


@pytest.mark.proof()
def test_the_gradient_of_the_queries_is_the_same_from_a_kernel_of_its_own(monkeypatch):
  monkeypatch.setitem(tuning.KEYS, 64, dataclasses.replace(tuning.KEYS[64], fused=False))
  _check(*_call(130, causal=True))


@pytest.mark.parametrize('compose', ['vmap', 'scan and checkpoint', 'shard_map'])
def test_it_composes_down_to_gpu_code(compose):
  q, k, v, spec = _call(256, batch=2, causal=True, kv_heads=2)

  def loss(q, k, v):
    return jnp.sum(attention(q, k, v, spec, implementation='hopper').astype(jnp.float32))

  if compose == 'vmap':
    function = jax.vmap(jax.grad(loss, (0, 1, 2)))
    q, k, v = (jnp.stack([x, x]) for x in (q, k, v))
  elif compose == 'scan and checkpoint':
    function = jax.grad(
      lambda *qkv: jax.lax.scan(lambda total, _: (total + jax.checkpoint(loss)(*qkv), None), 0.0, None, length=2)[0],
      (0, 1, 2),
    )
  else:
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ('rows', 'columns'))
    parts = jax.sharding.PartitionSpec('rows', None, 'columns')
    sharded = jax.shard_map(
      lambda q, k, v: attention(q, k, v, spec, implementation='hopper'), mesh=mesh, in_specs=parts, out_specs=parts
    )
    function = jax.grad(lambda *qkv: jnp.sum(sharded(*qkv).astype(jnp.float32)), (0, 1, 2))
  with target(_H200):
    lowered = jax.jit(function).trace(q, k, v).lower(lowering_platforms=('cuda',))
  assert lowered.as_text().count('mosaic_gpu') >= 2  # forward and gradients


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'dtype': jnp.dtype('float32')}, 'bfloat16 and float16, not float32'),
    ({'head_dim': 80}, 'head_dim of 64, 96, 128, 192, 256, not 80'),
    ({'head_dim': 256, 'spec': AttentionSpec(bias=jnp.zeros((1, 2, 4, 4)))}, 'a bias up to a head_dim of 192'),
    ({'spec': AttentionSpec(scale=-1.0)}, 'a scale above 0, not -1.0'),
    ({'device': Device('gpu', 'NVIDIA A100')}, 'Hopper generation .*, not NVIDIA A100'),
    ({'device': Device('cpu', 'cpu')}, 'not cpu'),
  ],
)
def test_what_it_does_not_serve_it_refuses_in_words(changes, words):
  call = {'spec': AttentionSpec(), 'dtype': jnp.bfloat16, 'device': _H200, 'head_dim': 64} | changes
  shapes = Shapes(batch=1, q_len=4, kv_len=4, heads=2, kv_heads=1, head_dim=call.pop('head_dim'))
  assert not hopper.supports(AttentionSpec(), dataclasses.replace(shapes, head_dim=64), jnp.bfloat16, _H200)
  assert re.search(words, hopper.supports(shapes=shapes, **call))


@pytest.mark.parametrize(
  'spec, q_len',
  [
    (AttentionSpec(), 30),
    (AttentionSpec(causal=True, scale=0.3), 40),
    (AttentionSpec(causal=True, window=7), 40),
    (AttentionSpec(bias=jnp.asarray(_normal(1, 2, 30, 40))), 30),
  ],
)
def test_cudnn_is_asked_for_what_the_spec_means(spec, q_len, monkeypatch):
  monkeypatch.setattr(cudnn, '_IMPLEMENTATION', 'xla')  # the same function on any device
  q, k, v, _ = _call(q_len, 40)
  assert not cudnn.supports(spec, Shapes(1, q_len, 40, 2, 1, 64), q.dtype, _H200)
  expected = attention(q, k, v, spec, implementation='reference')
  np.testing.assert_allclose(
    np.asarray(cudnn.attend(q, k, v, spec)[0], np.float32), np.asarray(expected, np.float32), atol=3e-2
  )


@pytest.mark.parametrize(
  'fields, words',
  [
    ({'q_segment_ids': jnp.ones((1, 40), int), 'kv_segment_ids': jnp.ones((1, 40), int)}, 'no segment_ids'),
    ({'softcap': 2.0}, 'no softcap'),
    ({'sinks': jnp.zeros(2)}, 'no sinks'),
    ({'window': 3}, 'causal attention only'),
    ({'dropout_rate': 0.1, 'dropout_seed': jnp.uint32(1)}, 'drops other places'),
    ({'causal': True}, '40 queries and 30'),
  ],
)
def test_cudnn_refuses_in_words_what_it_computes_differently(fields, words):
  assert words in cudnn.supports(AttentionSpec(**fields), Shapes(1, 40, 30, 2, 1, 64), jnp.bfloat16, _H200)


def test_cudnn_gives_no_lse(monkeypatch):
  monkeypatch.setattr(cudnn, '_IMPLEMENTATION', 'xla')
  q, k, v, spec = _call(8)
  with target(_H200), pytest.raises(ValueError, match="'cudnn' gives no lse"):
    attention(q, k, v, spec, implementation='cudnn', return_lse=True)
