"""Functions with derivatives of their own, inside a transformed function."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import precision


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _gated(seen, pair, ids, factor):
  """factor * x * y, 0 where ids are; its derivative is 3 times too large, which tells whether it was used."""
  return _gated_fwd(seen, pair, ids, factor)[0]


def _gated_fwd(seen, pair, ids, factor):
  _SEEN.append((pair['x'].dtype, pair['y'].dtype))
  return jnp.where(ids == 0, 0, factor * pair['x'] * pair['y']), (pair, ids)


def _gated_bwd(factor, residuals, cotangent):
  pair, ids = residuals
  scaled = jnp.where(ids == 0, 0, 3 * factor * cotangent)
  return None, {'x': scaled * pair['y'], 'y': scaled * pair['x']}, None


_gated.defvjp(_gated_fwd, _gated_bwd)
_SEEN = []
W = jax.random.normal(jax.random.key(0), (8, 8)) / 3
X = jax.random.normal(jax.random.key(1), (4, 8))
IDS = jnp.arange(8) % 3
SHIFT = jnp.arange(8.0) / 8


def _loss(call):
  return lambda w, x: jnp.sum(jnp.sin(call(x @ w, w) @ w))


def _once(h, w):
  return _gated(None, {'x': h, 'y': jnp.sin(h)}, IDS, 0.5)


def _unused(h, w):
  return _gated(None, {'x': h, 'y': jnp.broadcast_to(w[0], h.shape)}, IDS, 0.5)


CALLS = {
    'plain': _once, 'jit': jax.jit(_once), 'remat': jax.checkpoint(_once),
    'scan': lambda h, w: lax.scan(lambda c, _: (_once(c, w), None), h, None, length=2)[0],
    'cond': lambda h, w: lax.cond(jnp.sum(w) < 1e9, _once, lambda h, w: h, h, w),
    'parameter': _unused,
    'vmap': lambda h, w: jax.vmap(_once, (0, None))(h, w),
    'closure': lambda h, w: _closing(h, w),  # over an array; jax itself refuses traced values under jit
}


def _closing(h, w):
  del w

  @jax.custom_vjp
  def call(h):
    return h * 2 + SHIFT

  call.defvjp(lambda h: (call(h), ()), lambda _, cotangent: (3 * cotangent,))
  return call(h)


def _distance(expected, actual):
  return float(jnp.linalg.norm(expected - actual) / jnp.linalg.norm(expected))


@pytest.mark.parametrize('name', CALLS)
def test_the_functions_own_derivative_is_used(name):
  loss = _loss(CALLS[name])
  expected = jax.value_and_grad(loss, (0, 1))(W, X)
  actual = jax.jit(jax.value_and_grad(precision.bf16(loss), (0, 1)))(W, X)
  for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(actual)):
    assert a.dtype == b.dtype and _distance(a, b) < 0.02


@pytest.mark.parametrize('name', ['plain', 'jit', 'remat', 'scan', 'cond'])
def test_it_is_called_again_with_bfloat16_where_matmuls_feed_it(name):
  _SEEN.clear()
  jax.grad(precision.bf16(_loss(CALLS[name])))(W, X)
  assert (jnp.bfloat16, jnp.bfloat16) in _SEEN


def test_what_no_matmul_feeds_arrives_in_float32():
  _SEEN.clear()
  jax.grad(precision.bf16(_loss(_unused)))(W, X)
  assert _SEEN[-1] == (jnp.bfloat16, jnp.float32)


def test_relu_keeps_its_derivative_at_zero():
  loss = lambda w: jnp.sum(jax.nn.relu(w @ jnp.zeros((8, 4))) @ jnp.ones((4, 1)))
  np.testing.assert_array_equal(jax.grad(precision.bf16(loss))(W), 0)
