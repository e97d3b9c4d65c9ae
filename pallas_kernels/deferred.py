"""A kernel as one equation of the jaxpr, which says what is computed; how is decided when the equation is evaluated.

A function with a derivative of its own (`jax.custom_vjp`) is traced at once, forward and backward, for the dtypes it is
called with. Attention and the cross-entropy choose kernels and block sizes by dtype, and a transformation of the
program that holds them (mixed precision) changes the dtype after they were called. So they appear as equations of a
primitive named 'kernel', whose parameter `call` is the Python function itself: a transformation calls it again with
what it likes; evaluation, differentiation, batching and lowering call it with what the equation has.
"""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.extend import core
from jax.interpreters import ad, batching, mlir

from pallas_kernels.sharding import vary_alike


@dataclasses.dataclass(frozen=True)
class Output:
  """An array that a call returns: that of argument `like`, in another shape of the same rank, and in another dtype.

  `equal_over` are mesh axes over which it does not differ although arguments do, inside `jax.shard_map`.
  """

  like: int
  shape: tuple[int, ...]
  dtype: np.dtype
  equal_over: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Call:
  """A function of a flat list of arrays, comparable by value.

  Attributes:
    function: called as `function(static, *arguments)`; returns a list of floating-point arrays.
    static: hashable, what the function is told besides.
    structure: of the arguments as pytrees.
    num_operands: leading arrays that are operands of matrix products, by whose dtype `function` chooses.
  """

  function: Callable
  static: tuple
  structure: object
  num_operands: int

  def __call__(self, *arrays) -> list:
    return list(self.function(self.static, *jax.tree.unflatten(self.structure, arrays)))


def defer(function: Callable, static: tuple, num_operands: int, outputs: tuple[Output, ...], *arguments) -> list:
  """Calls `function(static, *arguments)` as one equation.

  Args:
    function: of `static` and the arguments, returning a list of floating-point arrays; differentiable in reverse mode.
    static: hashable.
    num_operands: leading arrays among the leaves of `arguments` that are operands of matrix products.
    outputs: what the function returns for these arguments.
    *arguments: pytrees of arrays.

  Returns:
    The list that `function` returns.
  """
  arrays, structure = jax.tree.flatten(vary_alike(arguments))
  return kernel_p.bind(*arrays, call=Call(function, static, structure, num_operands), outputs=outputs)


def residuals(*arrays) -> tuple:
  """The arrays, marked by name as what a backward pass needs, so that a policy of `jax.checkpoint` can keep them and
  need not run the kernel again."""
  return tuple(checkpoint_name(x, 'residual') for x in arrays)


kernel_p = core.Primitive('kernel')
kernel_p.multiple_results = True
kernel_p.def_impl(lambda *arrays, call, outputs: call(*arrays))
mlir.register_lowering(kernel_p, mlir.lower_fun(lambda *arrays, call, outputs: call(*arrays)))


@kernel_p.def_abstract_eval
def _abstract_eval(*avals, call, outputs):
  del call
  results = []
  for output in outputs:
    aval = avals[output.like]
    varies = aval.manual_axis_type.update(varying=aval.manual_axis_type.varying - {*output.equal_over})
    results.append(aval.update(shape=output.shape, dtype=output.dtype, weak_type=False, manual_axis_type=varies))
  return results


def _jvp(primals, tangents, *, call, outputs):
  del outputs
  moves = [not isinstance(tangent, ad.Zero) for tangent in tangents]
  moving, moving_tangents = ([x for x, keep in zip(values, moves) if keep] for values in (primals, tangents))
  results, pullback = _pullback(call, moves, primals)

  @jax.custom_vjp
  def known(results, pullback, *moving):
    del pullback, moving
    return results

  known.defvjp(
    lambda results, pullback, *moving: (results, pullback),
    lambda pullback, cotangents: (None, None, *pullback(cotangents)),
  )
  return jax.jvp(lambda *moving: known(results, pullback, *moving), moving, moving_tangents)


def _pullback(call, moves, primals):
  """As `jax.vjp` of the call in the arguments that move, but evaluated in one piece.

  JAX evaluates the derivative of a primitive piecewise, and would take out of a loop whatever does not change in it:
  arrays as large as a chunk's logits that hold an index or a constant. Functions with derivatives of their own it
  leaves whole, so the pair is one.
  """
  structures = []

  def forward(*primals):
    def of_moving(*moving):
      moving = iter(moving)
      return call(*(next(moving) if keep else primal for primal, keep in zip(primals, moves)))

    results, pullback = jax.vjp(of_moving, *(primal for primal, keep in zip(primals, moves) if keep))
    leaves, structure = jax.tree.flatten(pullback)
    structures.append(structure)
    return results, leaves

  whole = jax.custom_vjp(forward)
  whole.defvjp(lambda *primals: jax.vjp(forward, *primals), lambda pullback, cotangents: pullback(cotangents))
  results, leaves = whole(*primals)
  return results, jax.tree.unflatten(structures[0], leaves)


ad.primitive_jvps[kernel_p] = _jvp


def _mapped(static, *arguments):
  (call,) = static
  return jax.vmap(call)(*arguments)


def _batch(arrays, axes, *, call, outputs):
  size = next(x.shape[axis] for x, axis in zip(arrays, axes) if axis is not None)
  arrays = [batching.bdim_at_front(x, axis, size) for x, axis in zip(arrays, axes)]
  outputs = tuple(dataclasses.replace(output, shape=(size, *output.shape)) for output in outputs)
  return defer(_mapped, (call,), call.num_operands, outputs, *arrays), [0] * len(outputs)


batching.primitive_batchers[kernel_p] = _batch
