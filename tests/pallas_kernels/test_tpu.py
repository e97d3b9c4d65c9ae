"""What the TPU kernels promise besides their values, simulated: blocks skipped, composition, sharding, no races."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import AttentionSpec, Device, Shapes, attention, supports, target
from pallas_kernels.tpu import tuning
from pallas_kernels.tpu.tuning import Blocks, Tuning

pytestmark = pytest.mark.proof()
_TPU = Device('tpu', interpret=True)
_CAUSAL = AttentionSpec(causal=True)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
  monkeypatch.setattr(tuning, '_LANES', 1)
  monkeypatch.setattr(tuning, 'CAREFUL', Tuning(Blocks(8, 16), Blocks(16, 8)))


def _normal(*shape, dtype=jnp.float32, seed=0):
  return jax.random.normal(jax.random.key(seed), shape, dtype)


def _qkv(*, batch=2, q_len=32, kv_len=32, heads=4, kv_heads=2, head_dim=8):
  keys = (batch, kv_len, kv_heads, head_dim)
  return _normal(batch, q_len, heads, head_dim), _normal(*keys, seed=1), _normal(*keys, seed=2)


def _loss(q, k, v, spec=_CAUSAL):
  return jnp.sum(jnp.sin(attention(q, k, v, spec, implementation='tpu')))


def _gradient(function, *arguments):
  with target(_TPU):
    return jax.jit(jax.value_and_grad(function, tuple(range(len(arguments)))))(*arguments)


def _assert_close(got, expected):
  for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


_SEGMENTS = jnp.repeat(jnp.asarray([[1, 2]]), 16, axis=1)
_PARTS = AttentionSpec(q_segment_ids=_SEGMENTS, kv_segment_ids=_SEGMENTS)


@pytest.mark.parametrize(
  'spec, keys, queries',
  [
    (_CAUSAL, np.s_[16:], np.s_[:16]),
    (_PARTS, np.s_[:16], np.s_[16:]),
    (AttentionSpec(window=5), np.s_[24:], np.s_[:8]),
  ],
)
def test_blocks_of_keys_that_no_query_sees_are_not_visited(spec, keys, queries):
  q, k, v = _qkv(batch=1)
  bad_k, bad_v = (x.at[:, keys].set(jnp.nan) for x in (k, v))

  def run(k, v):
    def loss(q):
      out = attention(q, k, v, spec, implementation='tpu')[:, queries]
      return jnp.sum(jnp.sin(out)), out

    with target(_TPU):
      d_q, out = jax.grad(loss, has_aux=True)(q)
    return d_q[:, queries], out

  _assert_close(run(bad_k, bad_v), run(k, v))


@pytest.mark.parametrize(
  'spec, queries, keys',
  [
    (_CAUSAL, np.s_[:16], np.s_[16:]),
    (_PARTS, np.s_[:16], np.s_[16:]),
    (AttentionSpec(window=5), np.s_[24:], np.s_[:8]),
  ],
)
def test_blocks_of_queries_that_see_no_key_are_not_visited(spec, queries, keys):
  q, k, v = _qkv(batch=1)
  expected, got = (
    _gradient(lambda k, v, q=q: _loss(q, k, v, spec), k, v)[1] for q in (q, q.at[:, queries].set(jnp.nan))
  )
  _assert_close([x[:, keys] for x in got], [x[:, keys] for x in expected])


def test_the_gradient_of_a_shared_bias_never_has_the_size_of_all_logits():
  q, k, v = _qkv(q_len=40, kv_len=48)
  for shape in ((1, 4, 40, 48), (2, 1, 40, 48), (1, 1, 1, 48)):
    gradient = jax.grad(lambda bias: _loss(q, k, v, AttentionSpec(bias=bias)))
    with target(_TPU):
      calls = str(jax.make_jaxpr(gradient)(jnp.zeros(shape))).split('pallas_call')[1:]
    assert calls and not any('f32[2,4,40,48]' in text for text in calls)


def test_it_composes_with_vmap_checkpoint_and_scan():
  q, k, v = _normal(3, 2, 33, 4, 8), _normal(3, 2, 33, 2, 8, seed=1), _normal(3, 2, 33, 2, 8, seed=2)
  segments = jnp.cumsum(jax.random.bernoulli(jax.random.key(4), 0.1, (3, 2, 33)), axis=-1)

  def one(q, k, v, segments):
    return _loss(q, k, v, AttentionSpec(causal=True, q_segment_ids=segments, kv_segment_ids=segments))

  def looped(q, k, v):
    return sum(one(q[n], k[n], v[n], segments[n]) for n in range(3))

  def mapped(q, k, v):
    return jnp.sum(jax.vmap(one)(q, k, v, segments))

  def scanned(q, k, v):
    step = lambda total, x: (total + jax.checkpoint(one)(*x), None)
    return jax.lax.scan(step, 0.0, (q, k, v, segments))[0]

  expected = _gradient(looped, q, k, v)
  _assert_close(_gradient(mapped, q, k, v), expected)
  _assert_close(_gradient(scanned, q, k, v), expected)


@pytest.mark.parametrize('segmented', [False, True])
def test_heads_and_batch_split_by_shard_map(segmented):
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ('rows', 'columns'))
  heads, rows = jax.sharding.PartitionSpec('rows', None, 'columns'), jax.sharding.PartitionSpec('rows')
  shared = jax.sharding.PartitionSpec(None, 'columns')
  q, k, v = _qkv(q_len=24, kv_len=24)
  ids, bias = jnp.sort(jax.random.randint(jax.random.key(5), (2, 24), 0, 3)), _normal(1, 4, 24, 24, seed=6)

  def run(q, k, v, bias, ids):
    spec = AttentionSpec(causal=True, bias=bias)
    if segmented:
      spec = dataclasses.replace(spec, q_segment_ids=ids, kv_segment_ids=ids)
    return attention(q, k, v, spec, implementation='tpu')

  # The simulator, unlike the compiler, refuses tables of blocks that differ between devices under check_vma.
  split = jax.shard_map(
    run, mesh=mesh, in_specs=(heads, heads, heads, shared, rows), out_specs=heads, check_vma=not segmented
  )
  expected, got = (_gradient(lambda *x, f=f: jnp.sum(jnp.sin(f(*x, ids))), q, k, v, bias) for f in (run, split))
  _assert_close(got, expected)


def test_dropout_is_the_same_whatever_the_mesh():
  q, k, v = _qkv(batch=4, q_len=20, kv_len=20)
  first = jnp.asarray([3, 8, 100, 7])
  spec = AttentionSpec(causal=True, dropout_rate=0.3, dropout_seed=jnp.uint32(11), dropout_offset=first)
  mesh = jax.make_mesh((4, 2), ('rows', 'columns'), axis_types=(jax.sharding.AxisType.Auto,) * 2)
  parts = jax.sharding.PartitionSpec('rows', None, 'columns')

  def attend(q, k, v, spec=spec):
    return attention(q, k, v, spec, implementation='tpu')

  def attend_to_part(q, k, v):
    here = jnp.stack([jax.lax.axis_index('rows') * q.shape[0], jax.lax.axis_index('columns') * q.shape[2], 0, 0])
    return attend(q, k, v, dataclasses.replace(spec, dropout_offset=first + here))

  split = jax.shard_map(attend_to_part, mesh=mesh, in_specs=(parts,) * 3, out_specs=parts)
  expected, got = (_gradient(lambda *x, f=f: jnp.sum(jnp.sin(f(*x))), q, k, v) for f in (attend, split))
  _assert_close(got, expected)


@pytest.mark.slow
def test_simulated_memory_is_written_before_it_is_read_and_free_of_races(capfd):
  q, k, v = _qkv(batch=1, q_len=20, kv_len=28)
  ids = lambda length: jnp.sort(jax.random.randint(jax.random.key(7), (1, length), 0, 3))
  spec = AttentionSpec(
    causal=True,
    window=20,
    softcap=3.0,
    dropout_rate=0.2,
    dropout_seed=jnp.uint32(5),
    q_segment_ids=ids(20),
    kv_segment_ids=ids(28),
    alibi_slopes=jnp.full(4, 0.1),
    sinks=jnp.zeros(4),
    bias=_normal(1, 4, 20, 28, seed=8),
  )
  loss = lambda q, k, v, bias: _loss(q, k, v, dataclasses.replace(spec, bias=bias))
  expected = _gradient(loss, q, k, v, spec.bias)
  careful = Device('tpu', interpret=pltpu.InterpretParams(detect_races=True, uninitialized_memory='nan'))
  with target(careful):
    got = jax.value_and_grad(loss, (0, 1, 2, 3))(q, k, v, spec.bias)
  _assert_close(got, expected)
  assert 'RACE DETECTED' not in capfd.readouterr().out


@pytest.mark.parametrize(
  'dtype, device, changes, reason',
  [
    ('float32', Device('cpu'), {}, 'not on cpu'),
    ('float64', _TPU, {}, 'takes float32 and bfloat16, not float64'),
    ('int32', _TPU, {}, 'not int32'),
    ('float16', _TPU, {}, 'not float16'),
    ('bfloat16', _TPU, {'head_dim': 264}, 'head_dim of at most 256, not 264'),
    ('bfloat16', _TPU, {'q_len': 9000, 'kv_len': 9000}, 'bytes of scalar memory, which has room for 983040'),
  ],
)
def test_what_it_cannot_serve_it_refuses_in_words(dtype, device, changes, reason):
  shapes = Shapes(**{'batch': 1, 'q_len': 9, 'kv_len': 9, 'heads': 2, 'kv_heads': 1, 'head_dim': 8} | changes)
  assert reason in supports(AttentionSpec(), shapes, jnp.dtype(dtype), device)['tpu']


@pytest.mark.parametrize('kind', ['TPU v5 lite', 'TPU v5', 'TPU v6 lite', 'TPU of the future'])
def test_blocks_are_whole_vectors_and_no_longer_than_the_call(kind, monkeypatch):
  monkeypatch.undo()
  for length, head_dim, dtype in ((1, 64, 'float32'), (300, 100, 'bfloat16'), (10_000, 256, 'float32')):
    shapes = Shapes(batch=1, q_len=length, kv_len=length, heads=1, kv_heads=1, head_dim=head_dim)
    tuned = tuning.tuning(kind, AttentionSpec(), shapes, jnp.dtype(dtype))
    for size in dataclasses.astuple(tuned.forward) + dataclasses.astuple(tuned.backward):
      assert size % 128 == 0 and size < length + 128
