"""The fused head and cross-entropy against the two written separately."""

import re

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest
from harness import covering

from pallas_kernels import cross_entropy, linear_cross_entropy


def _separate(hidden, kernel, labels, bias, softcap, label_smoothing, z_loss):
  """Whole logits in float32 (float64 for float64), a one-hot target."""
  computed = jnp.promote_types(hidden.dtype, jnp.float32)
  logits = jnp.einsum('bld,vd->blv', hidden.astype(computed), kernel.astype(computed), precision='highest')
  logits = logits if bias is None else logits + bias
  logits = softcap * jnp.tanh(logits / softcap) if softcap else logits
  counted, lse = labels >= 0, jax.nn.logsumexp(logits, axis=-1)
  one_hot = jax.nn.one_hot(jnp.where(counted, labels, 0), kernel.shape[0])
  smoothed = (1 - label_smoothing) * one_hot + label_smoothing / kernel.shape[0]
  loss = jnp.sum(smoothed * (lse[..., None] - logits), axis=-1) + z_loss * lse**2
  nll = jnp.sum(one_hot * (lse[..., None] - logits), axis=-1)
  correct = (jnp.argmax(logits, axis=-1) == labels) & counted
  return jnp.sum(jnp.where(counted, loss, 0)), jnp.where(counted, nll, 0), correct


def _inputs(batch, length, embed, vocab, dtype=jnp.float32, seed=0):
  random = np.random.default_rng(seed)
  hidden, kernel = (jnp.asarray(random.normal(size=shape)) for shape in ((batch, length, embed), (vocab, embed)))
  # Values that bfloat16 holds exactly, so that only the arithmetic differs.
  hidden, kernel = (x.astype(jnp.bfloat16) for x in (hidden, kernel))
  labels = jnp.asarray(random.integers(-1, vocab, (batch, length)), jnp.int32)
  return hidden.astype(dtype), kernel.astype(jnp.float32), jnp.where(labels < 0, -100, labels)


@pytest.fixture
def small_chunks(monkeypatch):
  monkeypatch.setitem(cross_entropy._CHUNKS, 'cpu', cross_entropy._Chunk(logits=64, tokens=4))


_CASES = covering.rows(
  {
    'sizes': [(1, 1, 1, 1), (2, 23, 5, 17), (3, 8, 9, 40)],
    'dtype': [jnp.float32, jnp.bfloat16],
    'label_smoothing': [0.0, 0.2],
    'z_loss': [0.0, 1e-2],
    'softcap': [None, 2.0],
    'has_bias': [False, True],
  }
)


@pytest.mark.usefixtures('small_chunks')
@pytest.mark.parametrize('case', _CASES, ids=str)
def test_it_agrees_with_head_and_loss_written_separately(case):
  terms = dict(case)
  sizes, dtype, has_bias = (terms.pop(name) for name in ('sizes', 'dtype', 'has_bias'))
  hidden, kernel, labels = _inputs(*sizes, dtype)
  bias = jnp.linspace(-1, 1, sizes[3]) if has_bias else None

  def run(loss):
    def total(hidden, kernel, bias):
      result = loss(hidden, kernel, labels, bias, **terms)
      return 0.3 * result[0], tuple(result)

    return jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True))(hidden, kernel, bias)

  (_, results), gradients = run(linear_cross_entropy)
  (_, expected), expected_gradients = run(_separate)
  alone = jax.jit(lambda *x: linear_cross_entropy(*x, **terms))(hidden, kernel, labels, bias)
  assert np.array_equal(results[2], expected[2]) and np.array_equal(alone.correct, expected[2])
  for one, other in zip((*results[:2], *alone[:2]), 2 * expected[:2], strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
  for one, other in zip(*map(jax.tree.leaves, (gradients, expected_gradients)), strict=True):
    assert one.dtype == other.dtype
    scale = max(1e-3, float(jnp.max(jnp.abs(other))))
    tolerance = 1e-5 if dtype == jnp.float32 else 2e-2
    np.testing.assert_allclose(np.float32(one) / scale, np.float32(other) / scale, atol=tolerance)


@pytest.mark.usefixtures('small_chunks')
def test_gradients_are_finite_differences_in_float64():
  with jax.enable_x64(True):
    hidden, kernel, labels = _inputs(2, 7, 3, 5)
    loss = lambda h, k: linear_cross_entropy(h, k, labels, label_smoothing=0.1, z_loss=0.01).total
    jax.test_util.check_grads(loss, (hidden.astype(float), kernel.astype(float)), order=1, modes=['rev'], rtol=1e-6)


def test_of_equal_logits_the_first_is_the_prediction():
  result = linear_cross_entropy(jnp.ones((1, 3, 2)), jnp.zeros((5, 2)), jnp.array([[0, 4, -1]]))
  assert result.correct.tolist() == [[True, False, False]]
  np.testing.assert_allclose(result.nll, [[np.log(5), np.log(5), 0]], rtol=1e-6)


def test_ignored_tokens_change_nothing_even_with_hidden_states_that_are_not_finite():
  hidden, kernel, labels = _inputs(2, 6, 4, 9)
  labels = labels.at[:, 4:].set(-100)
  total = lambda hidden, kernel: linear_cross_entropy(hidden, kernel, labels).total
  expected = jax.value_and_grad(total, (0, 1))(hidden, kernel)
  got = jax.value_and_grad(total, (0, 1))(hidden.at[:, 4:].set(1e30), kernel)
  for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.optimised
def test_all_tokens_times_vocabulary_never_exist_in_float32():
  def compiled(function, length):
    shapes = ((2, length, 8), jnp.bfloat16), ((8192, 8), jnp.float32), ((2, length), jnp.int32)
    inputs = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
    return str(jax.make_jaxpr(function)(*inputs)), jax.jit(function).lower(*inputs).compile()

  for function in (linear_cross_entropy, jax.grad(lambda *x: linear_cross_entropy(*x).total, (0, 1))):
    jaxpr, program = compiled(function, 1024)
    for text in (jaxpr, program.as_text()):
      sizes = [np.prod([int(n) for n in shape.split(',')]) for shape in re.findall(r'f32\[([\d,]+)\]', text)]
      assert max(sizes) <= 2 * 1024 * 8192 // 4
    _, longer = compiled(function, 4096)
    first, second = (x.memory_analysis().temp_size_in_bytes for x in (program, longer))
    assert second < 1.1 * first


@pytest.mark.usefixtures('small_chunks')
@pytest.mark.optimised
def test_a_batch_sharded_over_devices_gives_the_same_and_gathers_nothing_of_its_size():
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:8]), ('devices',))
  rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('devices'))
  hidden, kernel, labels = _inputs(8, 16, 4, 11)
  step = jax.jit(jax.value_and_grad(lambda *x: linear_cross_entropy(*x).total, (0, 1)))
  expected = step(hidden, kernel, labels)
  sharded = jax.device_put(hidden, rows), kernel, jax.device_put(labels, rows)
  got = step(*sharded)
  for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
  assert got[1][0].sharding.is_equivalent_to(rows, 3)
  assert not re.findall(r'all-gather|all-to-all|collective-permute', step.lower(*sharded).compile().as_text())


@pytest.mark.usefixtures('small_chunks')
def test_it_composes_with_vmap_scan_checkpoint_and_shard_map():
  hidden, kernel, labels = _inputs(8, 16, 4, 11)
  total = lambda hidden, kernel, labels: linear_cross_entropy(hidden, kernel, labels).total
  rows, whole = jax.sharding.PartitionSpec('devices'), jax.sharding.PartitionSpec()
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:8]), ('devices',))

  def split(*inputs):
    return jax.shard_map(
      lambda *x: jax.lax.psum(total(*x), 'devices'), mesh=mesh, in_specs=(rows, whole, rows), out_specs=whole
    )(*inputs)

  def mapped(hidden, kernel, labels):
    return jnp.sum(jax.vmap(total, (0, None, 0))(hidden[:, None], kernel, labels[:, None]))

  def scanned(hidden, kernel, labels):
    step = lambda sum, x: (sum + jax.checkpoint(total)(x[0], kernel, x[1]), None)
    return jax.lax.scan(step, 0.0, (hidden[:, None], labels[:, None]))[0]

  expected = jax.value_and_grad(total, (0, 1))(hidden, kernel, labels)
  for function in (split, mapped, scanned):
    got = jax.jit(jax.value_and_grad(function, (0, 1)))(hidden, kernel, labels)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
      np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  'inputs, terms, message',
  [
    ((jnp.zeros((1, 2, 3)), jnp.zeros((5, 4)), jnp.zeros((1, 2), int)), {}, r'got \(1, 2, 3\), \(5, 4\), \(1, 2\)'),
    ((jnp.zeros((1, 2, 3)), jnp.zeros((5, 3)), jnp.zeros((1, 2))), {}, 'labels must be integers; got float32'),
    (
      (jnp.zeros((1, 2, 3)), jnp.zeros((5, 3)), jnp.zeros((1, 2), int)),
      {'label_smoothing': 1.0},
      'label_smoothing must',
    ),
    ((jnp.zeros((1, 2, 3)), jnp.zeros((5, 3)), jnp.zeros((1, 2), int)), {'softcap': 0.0}, 'softcap must be above 0'),
    (
      (jnp.zeros((1, 2, 3)), jnp.zeros((5, 3)), jnp.zeros((1, 2), int), jnp.zeros(3)),
      {},
      r'bias must have shape \(5,\)',
    ),
  ],
)
def test_a_wrong_call_is_refused_in_words(inputs, terms, message):
  with pytest.raises(ValueError, match=message):
    linear_cross_entropy(*inputs, **terms)
