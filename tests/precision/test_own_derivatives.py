"""Functions with derivatives of their own in a transformed function: their rules are used, their products rounded."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import precision


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _steep(seen, pair, ids, factor):
  """factor * (x @ y), 0 where ids are; its derivative is 3 times too large, which tells whether it was used."""
  return _steep_fwd(seen, pair, ids, factor)[0]


def _steep_fwd(seen, pair, ids, factor):
  del seen
  return jnp.where(ids == 0, 0, factor * (pair['x'] @ pair['y'])), (pair, ids)


def _steep_bwd(factor, residuals, cotangent):
  pair, ids = residuals
  scaled = jnp.where(ids == 0, 0, 3 * factor * cotangent)
  return None, {'x': scaled @ pair['y'].T, 'y': pair['x'].T @ scaled}, None


_steep.defvjp(_steep_fwd, _steep_bwd)
W = jax.random.normal(jax.random.key(0), (8, 8)) / 3
X = jax.random.normal(jax.random.key(1), (4, 8))
IDS = jnp.arange(8) % 3
SHIFT = jnp.arange(8.0) / 8


def _loss(call):
  return lambda w, x: jnp.sum(jnp.sin(call(x @ w, w) @ w))


def _once(h, w):
  return _steep(None, {'x': h, 'y': jnp.sin(w)}, IDS, 0.5)


def _closing(h, w):
  del w

  @jax.custom_vjp
  def call(h):
    return h * 2 + SHIFT

  call.defvjp(lambda h: (call(h), ()), lambda _, cotangent: (3 * cotangent,))
  return call(h)


CALLS = {
  'plain': _once,
  'jit': jax.jit(_once),
  'remat': jax.checkpoint(_once),
  'closure': _closing,
  'scan': lambda h, w: lax.scan(lambda c, _: (_once(c, w), None), h, None, length=2)[0],
  'cond': lambda h, w: lax.cond(jnp.sum(w) < 1e9, _once, lambda h, w: h, h, w),
  'vmap': lambda h, w: jax.vmap(lambda row: _once(row[None], w)[0])(h),
}


def _distance(expected, actual):
  return float(jnp.linalg.norm(expected - actual) / jnp.linalg.norm(expected))


@pytest.mark.parametrize('name', CALLS)
def test_the_functions_own_derivative_is_used(name):
  loss = _loss(CALLS[name])
  expected = jax.value_and_grad(loss, (0, 1))(W, X)
  actual = jax.jit(jax.value_and_grad(precision.bf16(loss), (0, 1)))(W, X)
  assert abs(expected[0] - actual[0]) < 0.02  # the sum itself may cancel
  for a, b in zip(expected[1], actual[1]):
    assert a.dtype == b.dtype and _distance(a, b) < 0.02


@pytest.mark.parametrize('name', ['plain', 'remat', 'scan'])
def test_products_inside_are_rounded_forward_and_backward(name):
  gradients = jax.grad(precision.bf16(_loss(CALLS[name])), (0, 1))
  assert _operand_dtypes(jax.make_jaxpr(gradients)(W, X).jaxpr) == {jnp.dtype(jnp.bfloat16)}


def _operand_dtypes(jaxpr):
  found = set()
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == 'dot_general':
      found |= {var.aval.dtype for var in eqn.invars}
    for value in eqn.params.values():
      for inner in value if isinstance(value, (tuple, list)) else [value]:
        found |= _operand_dtypes(getattr(inner, 'jaxpr', inner)) if hasattr(inner, 'eqns') else set()
  return found


def test_relu_keeps_its_derivative_at_zero():
  loss = lambda w: jnp.sum(jax.nn.relu(w @ jnp.zeros((8, 4))) @ jnp.ones((4, 1)))
  np.testing.assert_array_equal(jax.grad(precision.bf16(loss))(W), 0)
