"""The values that a rewritten function computes with: arrays, activations, and expressions that wait.

Three kinds of value stand for a float32 value of the original function: an array in its own dtype; an `Activation`,
used as float32 and kept as bfloat16; and a `Lazy` elementwise expression, evaluated where it is needed. Besides, a
bfloat16 array may stand for it where the original was float32: what a function with its own derivative returned.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from precision import primitives


class Activation(NamedTuple):
  """What a matmul or a sum of such produced: float32 mathematics continues from `exact`; matmuls, and the derivatives
  of float32 mathematics, take `rounded`. Only the latter lives from the forward to the backward pass."""

  exact: jax.Array
  rounded: jax.Array


def activation(exact) -> Activation:
  return Activation(exact, exact.astype(jnp.bfloat16))


class Lazy:
  """Output `index` of an elementwise equation, or one that rearranges elements, not evaluated yet.

  `roots` are the activations it starts from; `linear`: its derivative needs nothing of what it starts from.
  """

  def __init__(self, scope, eqn, inputs, index=0):
    self.scope, self.eqn, self.inputs, self.index = scope, eqn, inputs, index
    self.aval = eqn.outvars[index].aval
    self.roots, self.size, self.activation = {}, 1, None
    for value, var in zip(inputs, eqn.invars):
      if isinstance(value, Lazy):
        self.roots.update(value.roots)
        self.size += value.size
      elif is_rounded(value, var):
        self.roots[id(value)] = value
    self.linear = primitives.is_linear(eqn) and all(value.linear for value in inputs if isinstance(value, Lazy))

  def evaluate(self):
    """The value as the original function would have it; its derivative is computed again, from rounded roots."""
    if self.activation is not None:
      return self.activation.exact
    order, leaves = _collect(self)
    pairs = [leaf if isinstance(leaf, Activation) else (leaf, leaf) for leaf in leaves.values()]
    exact, rounded = zip(*pairs) if pairs else ((), ())

    def expression(*arrays):
      known = dict(zip(leaves, arrays))
      for node in order:
        with node.eqn.ctx.manager, jax.named_scope(node.scope):
          known[id(node)] = bind(node.eqn, [known.get(id(x), x) for x in node.inputs])[node.index]
      return known[id(self)]

    return expression(*exact) if self.linear else _recomputed(expression)(exact, rounded)

  def activate(self):
    """The value as an activation, computed once."""
    if self.activation is None:
      self.activation = activation(self.evaluate())
    return self.activation


def _recomputed(expression):
  """`expression` of arrays, with a derivative that is computed again from rounded ones."""

  @jax.custom_vjp
  def evaluate(exact, rounded):
    del rounded
    return expression(*exact)

  def forward(exact, rounded):
    return expression(*exact), (rounded, [jnp.zeros((0,), x.dtype) for x in exact])

  def backward(residuals, cotangent):
    # Without the barrier XLA recognises the forward pass's values and keeps them, in float32.
    rounded = lax.optimization_barrier(residuals[0])
    arrays = [x.astype(like.dtype) for x, like in zip(rounded, residuals[1])]
    return tuple(jax.vjp(expression, *arrays)[1](cotangent)), None

  evaluate.defvjp(forward, backward)
  return evaluate


def is_rounded(value, var) -> bool:
  """Whether a value is an activation of the original function's float32 variable `var`, as it is kept."""
  return isinstance(value, Activation) or (getattr(value, 'dtype', None) == jnp.bfloat16
                                           and var.aval.dtype == jnp.float32)


def is_active(value, var) -> bool:
  return bool(value.roots) if isinstance(value, Lazy) else is_rounded(value, var)


def exact(value, var):
  """The value as an array in the dtype of the original function's variable."""
  if isinstance(value, Lazy):
    value = value.evaluate()
  elif isinstance(value, Activation):
    value = value.exact
  return value.astype(var.aval.dtype) if is_rounded(value, var) else value


def kept(value, var):
  """The value as an array for matmuls and opaque functions: activations in bfloat16."""
  if isinstance(value, Lazy):
    value = value.activate() if value.roots and var.aval.dtype == jnp.float32 else value.evaluate()
  return value.rounded if isinstance(value, Activation) else value


def bind(eqn, inputs) -> list:
  """Evaluates one equation on arrays as the original function would; returns the list of its outputs."""
  inputs = [value.astype(var.aval.dtype) if is_rounded(value, var) else value
            for value, var in zip(inputs, eqn.invars)]
  outputs = eqn.primitive.bind(*inputs, **eqn.primitive.get_bind_params(eqn.params))
  return list(outputs) if eqn.primitive.multiple_results else [outputs]


def _collect(root):
  """Unevaluated nodes under `root` in order of evaluation, and the values they start from by id."""
  order, leaves, seen = [], {}, set()

  def visit(node):
    seen.add(id(node))
    for value in node.inputs:
      if isinstance(value, Lazy):
        if value.activation is not None:
          leaves[id(value)] = value.activation
        elif id(value) not in seen:
          visit(value)
      elif isinstance(value, (jax.Array, Activation)):
        leaves[id(value)] = value
    order.append(node)

  visit(root)
  return order, leaves
