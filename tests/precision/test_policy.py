"""Policies: ordered patterns, islands of float32, kernels, and the table of what each product gets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import precision
from pallas_kernels import AttentionSpec, attention
from precision.policy import products

PARAMS = {
  'router': jax.random.normal(jax.random.key(0), (16, 4)),
  'mlp': jax.random.normal(jax.random.key(1), (16, 16)),
}
X = jax.random.normal(jax.random.key(2), (2, 8, 16))


def _fn(params, x):
  with jax.named_scope('layers'):
    with jax.named_scope('router'):
      scores = x @ params['router']
    with jax.named_scope('mlp'):
      x = x @ params['mlp']
    with jax.named_scope('attention'):
      heads = x.reshape(2, 8, 2, 8)
      return attention(heads, heads, heads, AttentionSpec(causal=True)), scores


def _policy(*rules):
  return precision.Policy((*rules, ('*', 'bfloat16')))


def _dtypes(fn, *args):
  """The operand dtype of every product and kernel, by path."""
  return {path: eqn.invars[0].aval.dtype.name for path, eqn in products(jax.make_jaxpr(fn)(*args).jaxpr)}


def test_an_island_stays_exactly_float32():
  transformed = precision.mixed_precision(_fn, _policy(('*/router', 'float32')))
  (_, expected), (_, actual) = _fn(PARAMS, X), transformed(PARAMS, X)
  np.testing.assert_array_equal(expected, actual)
  gradient = lambda f: jax.grad(lambda p: jnp.sum(jnp.sin(f(p, X)[1])))(PARAMS)['router']
  np.testing.assert_allclose(gradient(_fn), gradient(transformed), rtol=1e-6)
  rounded = precision.bf16(_fn)(PARAMS, X)[1]
  assert 0 < np.abs(rounded - expected).max() < 0.1


def test_the_first_pattern_that_matches_counts():
  policy = _policy(('layers/mlp', 'bfloat16'), ('layers', 'float32'))
  dtypes = _dtypes(precision.mixed_precision(_fn, policy), PARAMS, X)
  assert dtypes['layers/router'] == 'float32' and dtypes['layers/mlp'] == 'bfloat16'


@pytest.mark.parametrize('rules, dtype', [((), 'bfloat16'), ((('*/attention', 'float32'),), 'float32')])
def test_a_kernel_is_called_in_the_dtype_of_its_module(rules, dtype):
  transformed = precision.mixed_precision(_fn, _policy(*rules))
  found = {path: name for path, name in _dtypes(transformed, PARAMS, X).items() if 'attention' in path}
  assert set(found.values()) == {dtype}, found
  assert transformed(PARAMS, X)[0].dtype == jnp.float32


def test_a_kernel_that_takes_no_float32_can_be_chosen_under_bfloat16():
  """Traced in float32 first, 'hopper' would refuse; here it refuses the platform, having been given bfloat16."""

  def fn(x):
    heads = x.reshape(2, 8, 1, 16) @ jnp.eye(16)
    return attention(heads, heads, heads, AttentionSpec(causal=True), implementation='hopper')

  with pytest.raises(ValueError, match='head_dim|NVIDIA'):
    precision.bf16(fn)(X)
  with pytest.raises(ValueError, match='takes bfloat16 and float16, not float32'):
    fn(X)


def test_a_pattern_that_matches_no_product_is_an_error():
  with pytest.raises(ValueError, match="'layers/ruoter' matches nothing.*layers/router"):
    precision.mixed_precision(_fn, _policy(('layers/ruoter', 'float32')))(PARAMS, X)


def test_a_rule_that_does_not_exist_is_an_error():
  with pytest.raises(ValueError, match="'fp8'.*float32, bfloat16"):
    precision.Policy((('*', 'fp8'),))


def test_describe_prints_every_product_with_its_rule():
  lines = precision.describe(_policy(('*/router', 'float32')), _fn, PARAMS, X).splitlines()
  assert [line.split() for line in lines] == [
    ['path', 'operation', 'operands', 'rule', 'times'],
    ['layers/router', 'dot_general', '[2,8,16]', '[16,4]', 'float32', '1'],
    ['layers/mlp', 'dot_general', '[2,8,16]', '[16,16]', 'bfloat16', '1'],
    ['layers/attention', 'kernel', '[2,8,2,8]', '[2,8,2,8]', '[2,8,2,8]', 'bfloat16', '1'],
  ]
