"""The grouped product against a loop over groups in numpy float64, and where it must work."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import precision
from pallas_kernels import grouped_matmul

ROWS, INPUTS, OUTPUTS = 200, 24, 40
SIZES = {
  'uneven': (70, 0, 1, 129),
  'rows of no group': (0, 37, 60, 0),
  'one group has all': (0, 0, 200, 0),
  'nothing': (0, 0, 0, 0),
}


def arrays(dtype=np.float64):
  random = np.random.default_rng(0)
  shapes = (ROWS, INPUTS), (4, INPUTS, OUTPUTS), (ROWS, OUTPUTS)
  return [random.normal(size=shape).astype(dtype) for shape in shapes]


def expected(rows, weights, d_out, sizes):
  """The product and both gradients, a group at a time."""
  out, d_rows, d_weights = np.zeros((ROWS, OUTPUTS)), np.zeros((ROWS, INPUTS)), np.zeros_like(weights)
  for group, end in enumerate(np.cumsum(sizes)):
    mine = slice(end - sizes[group], end)
    out[mine] = rows[mine] @ weights[group]
    d_rows[mine] = d_out[mine] @ weights[group].T
    d_weights[group] = rows[mine].T @ d_out[mine]
  return out, d_rows, d_weights


@functools.partial(jax.jit, static_argnames='implementation')
def with_gradients(rows, weights, d_out, sizes, implementation='blocks'):
  out, pullback = jax.vjp(lambda *x: grouped_matmul(*x, sizes, implementation=implementation), rows, weights)
  return out, *pullback(d_out)


@pytest.mark.parametrize('sizes', SIZES.values(), ids=SIZES)
@pytest.mark.parametrize('implementation', ['blocks', 'ragged_dot'])
def test_product_and_gradients_are_those_of_a_loop_over_groups(implementation, sizes):
  inputs = arrays()
  actual = with_gradients(*(x.astype(np.float32) for x in inputs), np.int32(sizes), implementation=implementation)
  for found, wanted in zip(actual, expected(*inputs, sizes), strict=True):
    np.testing.assert_allclose(found, wanted, atol=2e-4)


def test_products_take_the_dtype_of_the_rows_and_the_weights_gradient_its_own():
  inputs, sizes = arrays(), SIZES['uneven']
  rows, weights, d_out = (jnp.asarray(x, jnp.float32) for x in inputs)
  out, d_rows, d_weights = with_gradients(rows.astype(jnp.bfloat16), weights, d_out, np.int32(sizes))
  assert (out.dtype, d_rows.dtype, d_weights.dtype) == (jnp.float32, jnp.bfloat16, jnp.float32)
  for found, wanted in zip((out, d_rows, d_weights), expected(*inputs, sizes), strict=True):
    assert 1e-4 < np.linalg.norm(np.float64(found) - wanted) / np.linalg.norm(wanted) < 1e-2


def test_the_precision_transformation_calls_it_with_narrow_rows():
  rows, weights, d_out = (jnp.asarray(x, jnp.float32) for x in arrays())
  sizes = jnp.int32(SIZES['uneven'])

  def loss(params, rows):
    def body(total, weights):
      return total + jnp.vdot(grouped_matmul(rows, weights, sizes), d_out), None

    return jax.lax.scan(jax.checkpoint(body), 0.0, params['weights'])[0]

  gradients = lambda loss: jax.jit(jax.grad(loss, (0, 1)))({'weights': jnp.stack([weights, 2 * weights])}, rows)
  wide, narrow = gradients(loss), gradients(precision.bf16(loss))
  for a, b in zip(jax.tree.leaves(wide), jax.tree.leaves(narrow), strict=True):
    assert a.dtype == b.dtype == jnp.float32
    assert 1e-4 < jnp.linalg.norm(a - b) / jnp.linalg.norm(a) < 1e-2


@pytest.mark.parametrize(
  'shapes, dtypes, implementation, words',
  [
    (((5, 3), (2, 4, 6), (2,)), (jnp.float32, jnp.int32), 'auto', r'got \(5, 3\), \(2, 4, 6\), \(2,\)'),
    (((5, 3), (2, 3, 6), (3,)), (jnp.float32, jnp.int32), 'auto', r'sizes \[groups\]'),
    (((5, 3), (2, 3, 6), (2,)), (jnp.float32, jnp.float32), 'auto', 'sizes must be integers; got float32'),
    (((5, 3), (2, 3, 6), (2,)), (jnp.int32, jnp.int32), 'auto', 'must be floating point; got int32'),
    (((5, 3), (2, 3, 6), (2,)), (jnp.float32, jnp.int32), 'dense', "no grouped_matmul implementation 'dense'; use"),
  ],
)
def test_what_cannot_be_multiplied_is_refused_in_words(shapes, dtypes, implementation, words):
  rows, weights, sizes = (jnp.zeros(shape, dtype) for shape, dtype in zip(shapes, (dtypes[0], *dtypes)))
  with pytest.raises(ValueError, match=words):
    grouped_matmul(rows, weights, sizes, implementation=implementation)
