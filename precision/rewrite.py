"""Rewriting a JAX function equation by equation, by a table of rules.

The function is traced to a jaxpr, which is evaluated again. A rule takes over the equations of one primitive:

    rule(name_stack, eqn, inputs) -> list of outputs

`name_stack` is the path of the equation, such as 'decoder/block/mlp/up', by which a rule can select modules; `inputs`
are arrays, of which activations (values that matmuls produced) come in bfloat16 and all else in the dtype of the
original function. A rule returns what it computed, in float32; the rewriting decides what is kept in bfloat16:
whatever flows on to another matmul. Between the rules float32 mathematics is left as it was (see `lazy`).
"""

import collections
import functools

import jax
import jax.numpy as jnp

from precision import control_flow, primitives
from precision.lazy import Lazy, bind, exact, is_activation

MAX_EXPRESSION = 64  # nodes: beyond it, keeping a value is cheaper than computing it again


def rewrite(fn, rules):
  """Returns a function that computes `fn` with the equations of some primitives replaced.

  Args:
    fn: any function of pytrees of arrays that jax can trace.
    rules: {primitive name: rule}, see the module.

  Returns:
    A function with the arguments, outputs and dtypes of `fn`.
  """
  @functools.wraps(fn)
  def rewritten(*args, **kwargs):
    closed, shapes = jax.make_jaxpr(fn, return_shape=True)(*args, **kwargs)
    rewriter = Rewriter(rules)
    outputs = rewriter.run(closed.jaxpr, closed.consts, jax.tree.leaves((args, kwargs)))
    return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

  return rewritten


class Rewriter:
  """Evaluates jaxprs under a table of rules."""

  def __init__(self, rules):
    self.rules = rules

  def run(self, jaxpr, consts, inputs, path=''):
    """Evaluates a whole function: outputs in its own dtypes."""
    outputs = self.evaluate(jaxpr, consts, inputs, [False] * len(jaxpr.outvars), path)
    return [exact(value, var.aval) for value, var in zip(outputs, jaxpr.outvars)]

  def evaluate(self, jaxpr, consts, inputs, flowing_outputs, path='', scope=''):
    """Evaluates a jaxpr: outputs are arrays, activations among them in bfloat16 where `flowing_outputs` says so.

    Args:
      jaxpr, consts, inputs: what to evaluate; inputs are arrays or `Lazy`.
      flowing_outputs: for each output whether it may reach a matmul.
      path: name stack of the equation that holds the jaxpr, from the outermost function on.
      scope: the same, from the innermost traced function on: what JAX does not add by itself.
    """
    flowing = primitives.flowing(jaxpr, flowing_outputs)
    uses = collections.Counter(var for eqn in jaxpr.eqns for var in eqn.invars if not primitives.is_literal(var))
    uses.update(var for var in jaxpr.outvars if not primitives.is_literal(var))
    env = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *inputs]))
    read = lambda var: var.val if primitives.is_literal(var) else env[var]
    for eqn in jaxpr.eqns:
      stack = str(eqn.source_info.name_stack)
      outputs = self._equation(eqn, [read(var) for var in eqn.invars], flowing, join(path, stack), join(scope, stack))
      for var, value in zip(eqn.outvars, outputs):
        if isinstance(value, Lazy) and value.is_activation and len(value.roots) > 1 and uses[var] > 1:
          value = value.kept()
        env[var] = value
    return [value.kept() if isinstance(value, Lazy) and flows else value.evaluate() if isinstance(value, Lazy) else value
            for value, flows in zip(map(read, jaxpr.outvars), flowing_outputs)]

  def _equation(self, eqn, inputs, flowing, path, scope):
    name = eqn.primitive.name
    if name in control_flow.HANDLERS and (handled := control_flow.HANDLERS[name]):
      return handled(self, eqn, inputs, flowing, path, scope)
    if name in self.rules:
      outputs = self._scoped(scope, eqn, self.rules[name], path, eqn, [kept(x) for x in inputs])
      return [_round(value, var, flowing) for value, var in zip(outputs, eqn.outvars)]
    if _is_lazy(eqn, inputs):
      node = Lazy(scope, eqn, inputs)
      if node.size > MAX_EXPRESSION:
        node.kept()
      return [node]
    if name in primitives.MOVEMENT and any(_activation(x, v) for x, v in zip(inputs, eqn.invars)):
      return self._scoped(scope, eqn, _move, eqn, [kept(x) for x in inputs])
    if len(eqn.outvars) == 1 and any(isinstance(x, Lazy) and x.roots for x in inputs):
      return [Lazy(scope, eqn, inputs).evaluate()]
    return self._scoped(scope, eqn, bind, eqn, [value.evaluate() if isinstance(value, Lazy) else value
                                                for value in inputs])

  def _scoped(self, scope, eqn, call, *args):
    with eqn.ctx.manager, jax.named_scope(scope):
      return call(*args)


def kept(value):
  return value.kept() if isinstance(value, Lazy) else value


def join(outer, inner) -> str:
  return f'{outer}/{inner}' if outer and inner else outer or inner


def _activation(value, var) -> bool:
  return value.is_activation if isinstance(value, Lazy) else is_activation(value, var.aval)


def _round(value, var, flowing):
  if var in flowing and var.aval.dtype == jnp.float32 and value.dtype == jnp.float32:
    return value.astype(jnp.bfloat16)
  return value


def _is_lazy(eqn, inputs) -> bool:
  name = eqn.primitive.name
  if len(eqn.outvars) != 1:
    return False
  if name == 'broadcast_in_dim':
    return True
  if name in primitives.ELEMENTWISE or (name == 'custom_jvp_call' and not any(
      map(primitives.has_matmul, primitives.inner_jaxprs(eqn)))):
    return any(_activation(x, v) or isinstance(x, Lazy) and x.roots for x, v in zip(inputs, eqn.invars))
  return name in primitives.MOVEMENT and any(isinstance(x, Lazy) and x.roots for x in inputs)


def _move(eqn, inputs):
  """Rearranges activations without leaving bfloat16; what comes beside them is rounded too."""
  inputs = [x.astype(jnp.bfloat16) if v.aval.dtype == jnp.float32 else x for x, v in zip(inputs, eqn.invars)]
  outputs = eqn.primitive.bind(*inputs, **eqn.params)
  return list(outputs) if eqn.primitive.multiple_results else [outputs]
