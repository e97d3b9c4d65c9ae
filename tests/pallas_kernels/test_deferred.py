"""A kernel as one equation: what every transformation of JAX makes of it is what it makes of the function itself."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

from pallas_kernels import AttentionSpec, Device, attention, cross_entropy, linear_cross_entropy, target
from pallas_kernels.deferred import Output, defer, kernel_p
from pallas_kernels.sharding import vary_alike

_MESH_AXES = ('devices',)


def _scaled_product(static, x, w, ids):
  """(factor x w, where ids are not 0; the row sums of that), by a derivative of its own, which counts its calls."""
  factor, calls = static
  calls.append(x.dtype)

  @jax.custom_vjp
  def product(x, w, ids):
    return jnp.where(ids[:, None] != 0, factor * x @ w, 0)

  def forward(x, w, ids):
    return product(x, w, ids), (x, w, ids)

  def backward(residuals, cotangent):
    x, w, ids = residuals
    cotangent = factor * jnp.where(ids[:, None] != 0, cotangent, 0)
    return cotangent @ w.T, x.T @ cotangent, None

  product.defvjp(forward, backward)
  y = product(x, w, ids)
  return [y, jnp.sum(y, axis=1, keepdims=True)]


class _Calls(list):
  """A list that counts as one value: what is static must be hashable."""

  __hash__, __eq__ = object.__hash__, object.__eq__


def _directly(x, w, ids):
  return _scaled_product((0.5, _Calls()), *vary_alike((x, w, ids)))


def _deferred(x, w, ids, calls=None):
  outputs = Output(0, (x.shape[0], w.shape[1]), x.dtype), Output(0, (x.shape[0], 1), x.dtype)
  return defer(_scaled_product, (0.5, _Calls() if calls is None else calls), 2, outputs, x, w, ids)


def _total(call, x, w, ids):
  y, sums = call(x, w, ids)
  return jnp.sum(jnp.sin(y)) + jnp.sum(sums**2)


X, W = jax.random.normal(jax.random.key(0), (8, 4)), jax.random.normal(jax.random.key(1), (4, 6))
IDS = jnp.arange(8) % 3
PARTS = jax.sharding.PartitionSpec(*_MESH_AXES)
WHOLE = jax.sharding.PartitionSpec()


def _scanned(total, x, w, ids):
  add = lambda sum, parts: (sum + total(parts[0], w, parts[1]), None)
  return jax.lax.scan(add, 0.0, (x.reshape(4, 2, 4), ids.reshape(4, 2)))[0]


def _split(total, x, w, ids):
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:8]), _MESH_AXES)
  on_part = lambda *parts: jax.lax.psum(total(*parts), _MESH_AXES)
  return jax.shard_map(on_part, mesh=mesh, in_specs=(PARTS, WHOLE, PARTS), out_specs=WHOLE)(x, w, ids)


TRANSFORMATIONS = {
  'evaluation': lambda total: total,
  'jit': jax.jit,
  'grad': lambda total: jax.grad(total, (0, 1)),
  'grad of one argument': lambda total: jax.grad(total, 1),
  'jit of grad': lambda total: jax.jit(jax.grad(total, (0, 1))),
  'vmap': lambda total: lambda x, w, ids: jax.vmap(total, (0, None, 0))(x[:, None], w, ids[:, None]),
  'jit of vmap': lambda total: jax.jit(lambda x, w, ids: jax.vmap(total, (0, None, 0))(x[:, None], w, ids[:, None])),
  'grad of vmap': lambda total: jax.grad(
    lambda x, w, ids: jnp.sum(jax.vmap(total, (0, 2, None))(x.reshape(2, 4, 4), jnp.stack([w, 2 * w], 2), ids[:4])),
    (0, 1),
  ),
  'vmap of grad': lambda total: (
    lambda x, w, ids: jax.vmap(jax.grad(total, 1), (0, None, 0))(x[:, None], w, ids[:, None])
  ),
  'vmap of vmap': lambda total: (
    lambda x, w, ids: jax.vmap(jax.vmap(total, (0, None, None)), (None, 0, None))(
      x.reshape(2, 4, 4), jnp.stack([w, 2 * w]), ids[:4]
    )
  ),
  'grad of scan': lambda total: jax.jit(jax.grad(functools.partial(_scanned, total), (0, 1))),
  'remat': lambda total: jax.jit(jax.grad(jax.checkpoint(total), (0, 1))),
  'remat by a policy': lambda total: jax.grad(
    jax.checkpoint(total, policy=jax.checkpoint_policies.dots_saveable), (0, 1)
  ),
  'grad of shard_map': lambda total: jax.jit(jax.grad(functools.partial(_split, total), (0, 1))),
}


@pytest.mark.parametrize('name', TRANSFORMATIONS)
def test_a_transformation_gives_what_it_gives_of_the_function(name):
  got, expected = (TRANSFORMATIONS[name](functools.partial(_total, call))(X, W, IDS) for call in (_deferred, _directly))
  for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
    assert one.dtype == other.dtype
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def _equations(jaxpr, name):
  """The equations of a primitive, also inside of other equations."""
  return [eqn for eqn in jaxpr.eqns if eqn.primitive.name == name] + [
    found for eqn in jaxpr.eqns for inner in core.jaxprs_in_params(eqn.params) for found in _equations(inner, name)
  ]


def _kernels(jaxpr):
  return _equations(jaxpr, kernel_p.name)


def test_a_caller_holds_one_equation_and_the_function_is_not_called_until_it_is_evaluated():
  calls = _Calls()
  closed = jax.make_jaxpr(functools.partial(_deferred, calls=calls))(X, W, IDS)
  (eqn,) = _kernels(closed.jaxpr)
  assert calls == [] and [var.aval.shape for var in eqn.outvars] == [(8, 6), (8, 1)]
  narrow = eqn.params['call'](*(x.astype(jnp.bfloat16) for x in (X, W)), IDS)
  assert calls == [jnp.bfloat16] and [x.dtype for x in narrow] == [jnp.bfloat16] * 2


@pytest.mark.parametrize(
  'call',
  [
    lambda x: attention(x, x, x, AttentionSpec(causal=True)),
    lambda x: linear_cross_entropy(x[0], x[1, 0], jnp.zeros(x.shape[1:3], int)),
    lambda x: jax.vmap(lambda y: attention(y[None], y[None], y[None], AttentionSpec()))(x),
  ],
  ids=['attention', 'cross-entropy', 'vmap'],
)
def test_a_call_of_the_library_is_one_equation(call):
  (eqn,) = _kernels(jax.make_jaxpr(call)(jnp.zeros((2, 5, 3, 4))).jaxpr)
  assert eqn.params['call'].num_operands in (1, 3)


def test_equal_calls_are_equal_so_that_what_is_compiled_is_found_again():
  x = jnp.zeros((2, 5, 3, 4))
  trace = lambda spec: _kernels(jax.make_jaxpr(lambda q: attention(q, q, q, spec))(x).jaxpr)[0].params
  assert trace(AttentionSpec(causal=True)) == trace(AttentionSpec(causal=True)) != trace(AttentionSpec())


def test_what_an_implementation_cannot_serve_is_refused_when_it_is_evaluated_and_not_when_it_is_traced():
  q = jnp.zeros((1, 64, 2, 64))
  run = lambda q: attention(q, q, q, AttentionSpec(causal=True), implementation='hopper')
  refusal = pytest.raises(ValueError, match="implementation='hopper' cannot serve this call: .* not float32")
  with target(Device('gpu', 'NVIDIA H200')):
    traced = jax.jit(run).trace(q)
    with refusal:
      traced.lower(lowering_platforms=('cuda',))
    with refusal:
      jax.jit(jax.grad(lambda q: jnp.sum(run(q)))).trace(q)
    with refusal:
      run(q)
  # The target is that of the call and not of whoever evaluates it.
  (eqn,) = _kernels(traced.jaxpr.jaxpr)
  narrow = jax.jit(eqn.params['call']).trace(*(x.astype(jnp.bfloat16) for x in 3 * [q]))
  assert 'mosaic_gpu' in narrow.lower(lowering_platforms=('cuda',)).as_text()


def test_outputs_differ_over_the_mesh_axes_that_arguments_differ_over():
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:8]), _MESH_AXES)

  def product(static, x, w):
    del static
    return [jax.lax.psum(x @ w, _MESH_AXES), x @ w]

  def run(x, w):
    shape = x.shape[0], w.shape[1]
    outputs = Output(0, shape, x.dtype, equal_over=_MESH_AXES), Output(0, shape, x.dtype)
    return defer(product, (), 2, outputs, x, w)

  split = jax.shard_map(run, mesh=mesh, in_specs=(PARTS, WHOLE), out_specs=[WHOLE, PARTS])
  total, parts = jax.jit(split)(X, W)
  np.testing.assert_allclose(parts, X @ W, rtol=1e-5)
  np.testing.assert_allclose(total, jnp.sum(X @ W, 0, keepdims=True), rtol=1e-5, atol=1e-5)
  gradient = jax.jit(jax.grad(lambda *x: jnp.sum(split(*x)[0]), (0, 1)))(X, W)
  expected = jax.grad(lambda x, w: jnp.sum(x @ w), (0, 1))(X, W)
  for one, other in zip(gradient, expected):
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_a_loop_inside_takes_no_array_that_it_could_make_itself(monkeypatch):
  monkeypatch.setitem(cross_entropy._CHUNKS, 'cpu', cross_entropy._Chunk(logits=64, tokens=4))
  total = lambda *inputs: linear_cross_entropy(*inputs).total
  closed = jax.make_jaxpr(jax.grad(total, (0, 1)))(jnp.zeros((2, 8, 4)), jnp.zeros((24, 4)), jnp.zeros((2, 8), int))
  (loop,) = _equations(closed.jaxpr, 'scan')
  vocab, batch, chunk = 24, 2, 2
  assert (4, batch, chunk) in [var.aval.shape for var in loop.invars]  # labels, as chunks
  assert not [var.aval for var in loop.invars if var.aval.shape == (vocab, batch, chunk)]
