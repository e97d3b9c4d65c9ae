"""What blockwise promises besides its values: blocks skipped, memory, composition, sharding, bf16 products."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import AttentionSpec, Shapes, attention, blocks, sharding

_CAUSAL = AttentionSpec(causal=True)


def _normal(*shape, dtype=jnp.float32, seed=0):
  return jax.random.normal(jax.random.key(seed), shape, dtype)


def _loss(q, k, v, spec=_CAUSAL, implementation='blockwise'):
  return jnp.sum(jnp.sin(attention(q, k, v, spec, implementation=implementation).astype(jnp.float32)))


@pytest.mark.parametrize(
  'spec',
  [AttentionSpec(), AttentionSpec(causal=True), AttentionSpec(window=40), AttentionSpec(causal=True, window=300)],
)
@pytest.mark.parametrize('q_len, kv_len', [(700, 700), (1500, 1500), (130, 1300), (1300, 130), (1030, 5000)])
def test_a_plan_visits_every_visible_pair_once_and_masks_where_needed(spec, q_len, kv_len):
  plan = blocks.plan(spec, Shapes(1, q_len, kv_len, 1, 1, 64), piecewise=True)
  q, k = np.arange(plan.padded_q_len)[:, None] + kv_len - q_len, np.arange(plan.padded_kv_len)[None]
  visible = (k < kv_len) & ((k <= q) | (not spec.causal)) & (np.abs(q - k) < (spec.window or np.inf))
  visits = np.zeros(visible.shape, int)
  for tiles in plan.tiles:
    for i, j in tiles.starts:
      square = np.s_[i : i + tiles.q_size, j : j + tiles.k_size]
      visits[square] += 1
      assert visible[square].any()
      assert tiles.masked or visible[square].all()
  assert np.all(visits[:q_len][visible[:q_len]] == 1) and visits.max() == 1
  assert plan.padded_q_len < 1.1 * q_len + 64 and plan.padded_kv_len < 1.1 * kv_len + 64


@pytest.mark.parametrize('piecewise', [False, True])
def test_a_plan_takes_as_much_of_the_batch_and_heads_at_once_as_asked(piecewise):
  plan = blocks.plan(_CAUSAL, Shapes(3, 2048, 2048, 32, 16, 64), piecewise)
  counts = jnp.zeros((3, 16, 4, 4), jnp.int32)

  def count(box, counts):
    assert box.sizes == {'b': 1, 'n': 2, 'q': 512, 'k': 512} if piecewise else box.sizes['b'] == 3
    place = (box.starts['b'], box.starts['n'], box.starts['q'] // 512, box.starts['k'] // 512)
    together = jnp.ones((box.sizes['b'], box.sizes['n'], 1, 1), jnp.int32)
    return jax.lax.dynamic_update_slice(counts, jax.lax.dynamic_slice(counts, place, together.shape) + together, place)

  np.testing.assert_array_equal(plan.visit(count, counts), np.broadcast_to(np.tri(4, dtype=int), counts.shape))


def test_arrays_lie_on_one_device_under_a_mesh_of_one_and_inside_of_shard_map():
  devices = np.array(jax.devices()[:8]).reshape(4, 2)
  whole, one = (jax.sharding.Mesh(x, ('rows', 'columns')) for x in (devices, devices[:1, :1]))
  rows, both = jax.sharding.PartitionSpec('rows'), jax.sharding.PartitionSpec('rows', 'columns')
  found = []

  def look(x):
    found.append(sharding.on_one_device())
    return x

  x = jnp.zeros((4, 2))
  jax.jit(look)(x)  # these tests have eight devices
  for mesh in (whole, one):
    with jax.set_mesh(mesh):
      jax.jit(look)(x)
  jax.jit(jax.shard_map(look, mesh=whole, in_specs=rows, out_specs=rows, axis_names={'rows'}))(x)
  jax.jit(jax.shard_map(look, mesh=whole, in_specs=both, out_specs=both))(x)
  assert found == [False, False, True, False, True]


@pytest.mark.optimised
def test_memory_grows_with_the_length_and_not_with_its_square():
  def temporaries(length, implementation):
    q = jax.ShapeDtypeStruct((1, length, 2, 16), jnp.bfloat16)
    gradient = jax.jit(jax.grad(lambda *x: _loss(*x, implementation=implementation), (0, 1, 2)))
    return gradient.lower(q, q, q).compile().memory_analysis().temp_size_in_bytes

  assert temporaries(8192, 'blockwise') < 2.5 * temporaries(4096, 'blockwise')
  assert temporaries(4096, 'blockwise') < 0.1 * temporaries(4096, 'reference')


@pytest.mark.parametrize('length', [40, 300, 1100])
@pytest.mark.optimised
def test_every_bf16_product_takes_bf16_operands_and_accumulates_in_float32(length):
  q = _normal(1, length, 2, 16, dtype=jnp.bfloat16)
  jaxpr = jax.make_jaxpr(jax.grad(_loss, (0, 1, 2)))(q, q, q)
  products = re.findall(r':(\w+)\[[\d,]*\] = dot_general', str(jaxpr))
  assert len(products) >= 7 and set(products) == {'f32'}
  # XLA converts the operands of a product it cannot do in bf16 to float32, which costs most of the speed.
  compiled = jax.jit(jax.grad(_loss, (0, 1, 2))).lower(q, q, q).compile().as_text()
  operands = re.findall(r'dot\(([^)]*)\)', compiled)
  types = dict(re.findall(r'%?([\w.-]+) = (\w+)\[', compiled))
  names = [name.strip().split(' ')[-1].lstrip('%') for pair in operands for name in pair.split(',')]
  assert names and {types[name] for name in names} == {'bf16'}


def test_it_composes_with_vmap_checkpoint_and_scan():
  q, k, v = _normal(3, 2, 33, 4, 8), _normal(3, 2, 33, 2, 8, seed=1), _normal(3, 2, 33, 2, 8, seed=2)
  gradient = jax.grad(_loss, (0, 1, 2))
  expected = [jnp.stack(x) for x in zip(*[gradient(q[n], k[n], v[n]) for n in range(3)], strict=True)]

  def scanned(q, k, v):
    def step(total, qkv):
      return total + jax.checkpoint(_loss)(*qkv), None

    return jax.lax.scan(step, 0.0, (q, k, v))[0]

  for got in (jax.vmap(gradient)(q, k, v), jax.jit(jax.grad(scanned, (0, 1, 2)))(q, k, v)):
    for one, other in zip(got, expected, strict=True):
      np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize('length', [24, 300, 1100])
@pytest.mark.optimised
def test_a_batch_sharded_over_devices_gives_the_same_without_gathering_it(length):
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:8]), ('devices',))
  sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('devices'))
  q, k, v = _normal(8, length, 4, 8), _normal(8, length, 2, 8, seed=1), _normal(8, length, 2, 8, seed=2)
  segments = jnp.cumsum(jax.random.bernoulli(jax.random.key(4), 0.05, (8, length)), axis=1) + 1

  def loss(q, k, v, segments):
    spec = AttentionSpec(
      causal=True, q_segment_ids=segments, kv_segment_ids=segments, dropout_rate=0.1, dropout_seed=jnp.uint32(1)
    )
    return _loss(q, k, v, spec)

  step = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))
  expected = step(q, k, v, segments)
  sharded = [jax.device_put(x, sharding) for x in (q, k, v, segments)]
  got = step(*sharded)
  for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
  assert all(x.sharding.is_equivalent_to(sharding, 4) for x in got[1])
  compiled = step.lower(*sharded).compile().as_text()
  assert not re.findall(r'all-gather|all-to-all|collective-permute', compiled)


def test_heads_and_batch_split_by_shard_map():
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:8]).reshape(4, 2), ('rows', 'columns'))
  axes = jax.sharding.PartitionSpec('rows', None, 'columns')
  for length in (24, 1100):
    q, k = _normal(4, length, 4, 8), _normal(4, length, 2, 8, seed=1)
    run = lambda q, k: attention(q, k, k, AttentionSpec(causal=True), implementation='blockwise')
    split = jax.shard_map(run, mesh=mesh, in_specs=(axes, axes), out_specs=axes)
    gradients = [jax.jit(jax.grad(lambda q, k, f=f: jnp.sum(jnp.sin(f(q, k))), (0, 1)))(q, k) for f in (run, split)]
    for one, other in zip(*gradients, strict=True):
      np.testing.assert_allclose(one, other, atol=1e-5)
