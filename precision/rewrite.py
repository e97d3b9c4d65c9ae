"""Rewriting a JAX function equation by equation, by a table of rules.

The function is traced to a jaxpr, which is evaluated again. A rule takes over the equations of one primitive:

    rule(name_stack, eqn, inputs) -> list of outputs

`name_stack` is the path of the equation, such as 'layers/mlp/up', by which a rule can select modules; `inputs`
are arrays: activations (what matmuls produced and float32 mathematics made of it) in bfloat16, all else in the
dtype of the original function. A rule returns what it computed in the dtypes of the original function. Between the
equations that rules take, float32 mathematics is left as it was, but that its derivatives start from the rounded
activations (see `lazy`).
"""

import collections
import functools

import jax
import jax.numpy as jnp

from precision import control_flow, primitives
from precision.lazy import Lazy, activation, bind, exact, is_active, kept

MAX_EXPRESSION = 64  # equations: beyond it, keeping a value is cheaper than computing it again


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
    outputs = Rewriter(rules).run(closed.jaxpr, closed.consts, jax.tree.leaves((args, kwargs)))
    return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

  return rewritten


class Rewriter:
  """Evaluates jaxprs under a table of rules."""

  def __init__(self, rules):
    self.rules = rules

  def run(self, jaxpr, consts, inputs, path=''):
    """Evaluates a whole function on arrays: outputs are arrays in its own dtypes."""
    outputs = self.evaluate(jaxpr, consts, inputs, [False] * len(jaxpr.outvars), path)
    return [jnp.asarray(exact(value, var)) for value, var in zip(outputs, jaxpr.outvars)]

  def evaluate(self, jaxpr, consts, inputs, flowing_outputs, path='', scope=''):
    """Evaluates a jaxpr on values (see `lazy`) and returns values.

    Args:
      jaxpr, consts, inputs: what to evaluate.
      flowing_outputs: for each output whether a matmul may follow.
      path: name stack of the equation that holds the jaxpr, from the outermost function on.
      scope: the same, from the innermost traced function on: what JAX does not add by itself.
    """
    flowing = primitives.flowing(jaxpr, flowing_outputs)
    uses = collections.Counter(var for holder in (*jaxpr.eqns, jaxpr) for var in _variables(holder))
    env = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *inputs]))
    read = lambda var: var.val if primitives.is_literal(var) else env[var]
    for eqn in jaxpr.eqns:
      stack = str(eqn.source_info.name_stack)
      outputs = self._equation(eqn, [read(var) for var in eqn.invars], flowing, join(path, stack), join(scope, stack))
      for var, value in zip(eqn.outvars, outputs):
        env[var] = _settled(value, var, uses[var], var in flowing)
    return [read(var) for var in jaxpr.outvars]

  def _equation(self, eqn, inputs, flowing, path, scope):
    if eqn.primitive.name == 'name':
      return inputs
    if handler := control_flow.handler(eqn):
      return handler(self, eqn, inputs, flowing, path, scope)
    active = any(is_active(value, var) for value, var in zip(inputs, eqn.invars))
    if active and primitives.is_cheap(eqn) or eqn.primitive.name == 'broadcast_in_dim':
      return [Lazy(scope, eqn, inputs, index) for index in range(len(eqn.outvars))]
    rule = self.rules.get(eqn.primitive.name)
    if active and len(eqn.outvars) == 1 and not rule:
      return [Lazy(scope, eqn, inputs).evaluate()]
    arrays = [(kept if rule else exact)(value, var) for value, var in zip(inputs, eqn.invars)]
    with eqn.ctx.manager, jax.named_scope(scope):
      if not rule:
        return bind(eqn, arrays)
      return [activation(value) if var in flowing and var.aval.dtype == jnp.float32 else value
              for value, var in zip(rule(path, eqn, arrays), eqn.outvars)]


def join(outer, inner) -> str:
  return f'{outer}/{inner}' if outer and inner else outer or inner


def _variables(holder):
  """The variables that an equation reads, or a jaxpr returns."""
  variables = holder.invars if hasattr(holder, 'primitive') else holder.outvars
  return [var for var in variables if not primitives.is_literal(var)]


def _settled(value, var, num_uses, flows):
  """Ends an expression where keeping its value costs less than keeping what it starts from."""
  if not isinstance(value, Lazy) or not value.roots or var.aval.dtype != jnp.float32:
    return value
  if num_uses > 1 and len(value.roots) > 1 or value.size > MAX_EXPRESSION:
    return value.activate() if flows else value.evaluate()
  return value

