"""Elementwise expressions that wait until something needs their value."""

import collections

import jax
import jax.numpy as jnp


class Lazy:
  """One elementwise equation of float32 mathematics, not evaluated yet.

  Inputs are arrays or other `Lazy` nodes. An array of bfloat16 where the equation says float32 is an activation that
  was rounded to be kept; an expression with such a root is an activation too (`is_activation`), and is rounded when
  it is kept. `roots` are those arrays.
  """

  def __init__(self, scope, eqn, inputs):
    self.scope, self.eqn, self.inputs, self.value = scope, eqn, inputs, None
    self.aval = eqn.outvars[0].aval
    self.roots = {}
    self.size = 1
    for value, var in zip(inputs, eqn.invars):
      if isinstance(value, Lazy):
        self.roots.update(value.roots)
        self.size += value.size
      elif is_activation(value, var.aval):
        self.roots[id(value)] = value

  @property
  def is_activation(self):
    return bool(self.roots) and self.aval.dtype == jnp.float32

  def evaluate(self):
    """The value in the equation's own dtype. What its derivative needs is computed again from the roots, so that
    the backward pass keeps those, in bfloat16, and not the float32 intermediates."""
    order, leaves = _collect(self)
    arrays = list(leaves.values())

    def expression(*arrays):
      known = dict(zip(leaves, arrays))
      for node in order:
        inputs = [known.get(id(x), x) for x in node.inputs]
        with node.eqn.ctx.manager, jax.named_scope(node.scope):
          known[id(node)], = bind(node.eqn, inputs)
      return known[id(self)]

    return (jax.checkpoint(expression, prevent_cse=False) if self.roots else expression)(*arrays)

  def kept(self):
    """The value as it is kept for others: activations in bfloat16."""
    if self.value is None:
      value = self.evaluate()
      self.value = value.astype(jnp.bfloat16) if self.is_activation else value
    return self.value


def is_activation(value, aval) -> bool:
  """Whether an array stands, rounded to bfloat16, for a float32 value of the original function."""
  return getattr(value, 'dtype', None) == jnp.bfloat16 and aval.dtype == jnp.float32


def exact(value, aval):
  """The array in the dtype that the original function gave it."""
  return value.astype(aval.dtype) if is_activation(value, aval) else value


def bind(eqn, inputs) -> list:
  """Evaluates one equation as the original function would; returns the list of its outputs."""
  inputs = [exact(value, var.aval) for value, var in zip(inputs, eqn.invars)]
  outputs = eqn.primitive.bind(*inputs, **eqn.primitive.get_bind_params(eqn.params))
  return list(outputs) if eqn.primitive.multiple_results else [outputs]


def _collect(root):
  """Unevaluated nodes under `root` in order of evaluation, and the arrays they start from by id."""
  order, leaves, seen = [], collections.OrderedDict(), set()

  def visit(node):
    seen.add(id(node))
    for value in node.inputs:
      if isinstance(value, Lazy) and value.value is None:
        if id(value) not in seen:
          visit(value)
      elif isinstance(value, Lazy):
        leaves[id(value)] = value.value
      elif isinstance(value, jax.Array):
        leaves[id(value)] = value
    order.append(node)

  visit(root)
  return order, leaves
