"""Head and cross-entropy over 8 devices: tokens, vocabulary and embed in parts, against float64 written out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from pallas_kernels import CrossEntropy, cross_entropy, linear_cross_entropy
from parallel.collectives import collectives

BATCH, LENGTH, EMBED, VOCAB = 8, 23, 16, 24
_SPLIT = {'axis_name': 'vocab', 'embed_axis_name': 'embed'}
# Mesh axes that split the rows, the vocabulary and embed, as `linear_cross_entropy` is told of them.
LAYOUTS = {
  'rows': (('rows', 'embed', 'vocab'), {}),
  'rows and embed': (('rows', 'embed', 'vocab'), {'embed_axis_name': 'embed'}),
  'embed in two axes': (('rows', 'embed', 'vocab'), {'embed_axis_name': ('embed', 'vocab')}),
  'vocabulary': (('rows', 'embed'), {'axis_name': 'vocab'}),
  'vocabulary in two axes': (('rows',), {'axis_name': ('embed', 'vocab')}),
  'rows, vocabulary and embed': (('rows', 'embed'), _SPLIT),
}


@pytest.fixture(scope='module')
def mesh():
  return jax.sharding.Mesh(np.array(jax.devices()[:8]).reshape(2, 2, 2), ('rows', 'embed', 'vocab'))


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
  monkeypatch.setitem(cross_entropy._CHUNKS, 'cpu', cross_entropy._Chunk(logits=64, tokens=4))


def _inputs(dtype=jnp.float32):
  random = np.random.default_rng(0)
  hidden, kernel = (random.normal(size=shape) for shape in ((BATCH, LENGTH, EMBED), (VOCAB, EMBED)))
  hidden, kernel = (jnp.asarray(x, jnp.bfloat16) for x in (hidden, kernel))  # exact, so that only arithmetic differs
  labels = random.integers(0, VOCAB, (BATCH, LENGTH))
  labels[0] = labels[3, 5:] = labels[:, -1] = -100
  hidden = hidden.at[1, 2].set(0)  # all logits equal: the first is the prediction
  labels[1, 2], labels[2, 2] = 0, VOCAB - 1
  return hidden.astype(dtype), kernel.astype(jnp.float32), jnp.asarray(labels, jnp.int32)


def _by_hand(hidden, kernel, labels, label_smoothing, z_loss):
  """Total, nll, correct and the gradients of the total, in float64."""
  hidden, kernel = (np.asarray(x.astype(jnp.float32), np.float64) for x in (hidden, kernel))
  labels = np.asarray(labels)
  counted, logits = labels >= 0, hidden @ kernel.T
  lse = np.log(np.exp(logits).sum(-1))
  one_hot = np.eye(VOCAB)[np.where(counted, labels, 0)]
  target = (1 - label_smoothing) * one_hot + label_smoothing / VOCAB
  nll = counted * (lse - (one_hot * logits).sum(-1))
  total = (counted * (lse - (target * logits).sum(-1) + z_loss * lse**2)).sum()
  probabilities = np.exp(logits - lse[..., None])
  d_logits = counted[..., None] * (probabilities * (1 + 2 * z_loss * lse)[..., None] - target)
  gradients = d_logits @ kernel, np.einsum('blv,bld->vd', d_logits, hidden)
  return total, nll, (logits.argmax(-1) == labels) & counted, gradients


def _over(mesh, layout, label_smoothing=0.0, z_loss=0.0):
  """value_and_grad of the summed total over the mesh, jitted, and the shardings of its arguments."""
  names, terms = LAYOUTS[layout]
  rows = PartitionSpec(names)
  specs = rows, PartitionSpec(terms.get('axis_name'), terms.get('embed_axis_name')), rows

  def on_device(*parts):
    result = linear_cross_entropy(*parts, label_smoothing=label_smoothing, z_loss=z_loss, **terms)
    return result._replace(total=jax.lax.psum(result.total, names))

  whole = jax.shard_map(on_device, mesh=mesh, in_specs=specs, out_specs=CrossEntropy(PartitionSpec(), rows, rows))

  def total(hidden, kernel, labels):
    result = whole(hidden, kernel, labels)
    return 0.5 * result.total, result

  shardings = [NamedSharding(mesh, spec) for spec in specs]
  return jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True), in_shardings=shardings), whole


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16], ids=['float32', 'bfloat16'])
@pytest.mark.parametrize('layout', LAYOUTS)
def test_parts_give_what_the_whole_gives(mesh, layout, dtype):
  terms = (0.2, 1e-2) if dtype == jnp.float32 else (0.0, 0.0)
  inputs = _inputs(dtype)
  total, nll, correct, gradients = _by_hand(*inputs, *terms)
  step, without_gradient = _over(mesh, layout, *terms)
  (half, result), found = step(*inputs)
  for one in (result, without_gradient(*inputs)):
    np.testing.assert_allclose((one.total, 2 * half), total, rtol=1e-5)
    np.testing.assert_allclose(one.nll, nll, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(one.correct, correct)
  for one, other, like in zip(found, gradients, inputs):
    assert one.dtype == like.dtype
    tolerance = 1e-5 if dtype == jnp.float32 else 2e-2
    np.testing.assert_allclose(np.float32(one), other / 2, atol=tolerance * abs(other).max(), rtol=tolerance)


def _communication(mesh, layout):
  """Kinds of collectives outside of loops, and in the loop over chunks, that move more than a number or two."""
  found = collectives(_over(mesh, layout, 0.1, 1e-3)[0].lower(*_inputs()).compile().as_text())
  outside = sorted(x.kind for x in found if not x.loops and x.bytes > 8)
  return outside, sorted((x.kind, x.bytes) for x in found if x.loops)


@pytest.mark.optimised
@pytest.mark.parametrize(
  'layout, expected', [('rows', ['all-reduce']), ('rows and embed', ['all-gather', 'all-reduce', 'reduce-scatter'])]
)
def test_the_gradient_is_reduced_once_after_the_last_chunk(mesh, layout, expected):
  assert _communication(mesh, layout) == (expected, [])


@pytest.mark.optimised
def test_parts_of_the_vocabulary_exchange_a_few_numbers_a_token(mesh):
  outside, inside = _communication(mesh, 'vocabulary')
  assert set(outside) == {'all-reduce'}  # of both gradients
  tokens = 4  # of a chunk, on each device
  numbers = (1, 5)  # the maximum; the sums of exponentials, label, larger logits, logits and whether it counts
  assert inside == [('all-reduce', 4 * tokens * n) for n in numbers]


def test_a_label_beyond_the_vocabulary_gives_nan_whatever_the_layout(mesh):
  hidden, kernel, labels = _inputs()
  for layout in ('rows', 'vocabulary'):
    nll = _over(mesh, layout)[1](hidden, kernel, labels.at[4, 4].set(VOCAB)).nll
    assert np.argwhere(np.isnan(nll)).tolist() == [[4, 4]]


def test_parts_that_do_not_fit_are_refused_in_words(mesh):
  def call(hidden, kernel, labels):
    return linear_cross_entropy(hidden, kernel, labels, embed_axis_name='embed').nll

  with pytest.raises(ValueError, match=r'got \(8, 23, 16\), \(24, 16\), \(8, 23\), the kernel in 2 parts'):
    jax.shard_map(call, mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec('embed'))(*_inputs())
