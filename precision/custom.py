"""Functions that carry derivatives of their own (`jax.custom_vjp`, `jax.custom_jvp`)."""

import functools

import jax
import jax.numpy as jnp

from precision.lazy import bind


def call_again(eqn, inputs) -> list:
  """Calls the Python function behind a `custom_vjp_call` equation again, on inputs of other dtypes.

  What the equation holds was traced in float32; attention or a fused cross-entropy choose their kernels by the dtype
  they are given. Where the Python function is out of reach (it was vmapped inside the transformed function, closes
  over traced values, or asks for symbolic zeros) the equation runs as it is, in float32.
  """
  args = inputs[eqn.params['num_consts']:]
  same = all(x.dtype == var.aval.dtype for x, var in zip(inputs, eqn.invars))
  if same or eqn.params['symbolic_zeros'] or (functions := _python_functions(eqn.params)) is None:
    return bind(eqn, inputs)
  forward, backward, structure = functions
  if _holds_tracer((forward, backward), set()):
    return bind(eqn, inputs)

  @jax.custom_vjp
  def call(*args):
    return forward(*args)[0]

  call.defvjp(forward, backward)
  return jax.tree.leaves(call(*jax.tree.unflatten(structure, args)))


def rewritten(rewriter, eqn, inputs, path) -> list:
  """Evaluates a `custom_jvp_call` equation and, when differentiated, the transpose of its own rule, both rewritten."""
  differentiable = [jnp.issubdtype(var.aval.dtype, jnp.inexact) for var in eqn.invars]

  def run(fn, *args):
    closed, shapes = jax.make_jaxpr(fn, return_shape=True)(*args)
    return jax.tree.unflatten(jax.tree.structure(shapes),
                              rewriter.run(closed.jaxpr, closed.consts, jax.tree.leaves(args), path))

  def gradients(inputs, cotangents):
    def fn(*floats):
      floats = iter(floats)
      return bind(eqn, [next(floats) if is_float else x for x, is_float in zip(inputs, differentiable)])
    floats = [x for x, is_float in zip(inputs, differentiable) if is_float]
    return jax.vjp(fn, *floats)[1](cotangents)

  @jax.custom_vjp
  def call(*inputs):
    jaxpr = eqn.params['call_jaxpr']
    return rewriter.run(getattr(jaxpr, 'jaxpr', jaxpr), getattr(jaxpr, 'consts', ()), inputs, path)

  def backward(inputs, cotangents):
    floats = iter(run(gradients, inputs, cotangents))
    return tuple(next(floats) if is_float else None for is_float in differentiable)

  call.defvjp(lambda *inputs: (call(*inputs), inputs), backward)
  return call(*inputs)


def _python_functions(params):
  """The forward and backward functions of `jax.custom_vjp.defvjp` with static arguments filled in, and the structure
  of their arguments; None unless they are wrapped just as `jax.custom_vjp.__call__` wraps them."""
  thunk = params['fwd_jaxpr_thunk'].f
  while (cells := _closure(thunk)) and 'fwd' not in cells:
    thunk = cells.get('fn')
  forward, backward = cells.get('fwd') if cells else None, params['bwd']
  if forward is None or not (_wrapped_by(forward, '_flatten_fwd') and _wrapped_by(backward, '_flatten_bwd')):
    return None
  structure, = (x for x in forward.transforms[0][1] if isinstance(x, jax.tree_util.PyTreeDef))
  return _without_flattening(forward), _without_flattening(backward), structure


def _holds_tracer(x, seen) -> bool:
  """Whether a function, or what it is made of, closes over a traced value, which is stale when it is called again."""
  if isinstance(x, jax.core.Tracer) or id(x) in seen:
    return isinstance(x, jax.core.Tracer)
  seen.add(id(x))
  if isinstance(x, (tuple, list, dict)):
    parts = x
  elif isinstance(x, functools.partial):
    parts = (x.func, x.args, x.keywords)
  elif isinstance(x, jax.custom_vjp):
    parts = (x.fun, x.fwd, x.bwd)
  elif getattr(x, '__closure__', None):
    parts = _closure(x)
  else:
    parts = ()
  return any(_holds_tracer(part, seen) for part in (parts.values() if isinstance(parts, dict) else parts))


def _closure(function) -> dict:
  if function is None or not function.__closure__:
    return {}
  return {name: cell.cell_contents for name, cell in zip(function.__code__.co_freevars, function.__closure__)}


def _wrapped_by(wrapped, name) -> bool:
  return bool(wrapped.transforms) and wrapped.transforms[0][0].__name__ == name and len(wrapped.transforms) <= 2


def _without_flattening(wrapped):
  function = wrapped.f
  for transform, static_args in reversed(wrapped.transforms[1:]):
    function = functools.partial(transform, function, *static_args)
  return function
