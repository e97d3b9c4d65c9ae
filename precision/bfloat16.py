"""bfloat16 as a transformation: the rules."""

import jax.numpy as jnp

from precision import matmul
from precision.lazy import bind
from precision.rewrite import rewrite


def bf16(fn):
  """Mixed precision for any function: what autocast does, ahead of time.

  Matmuls take bfloat16 operands and accumulate in float32, forward and backward. What matmuls produce, and sums of it
  such as the residual stream, is kept for the backward pass in bfloat16. Elementwise mathematics, reductions, norms,
  softmax and losses are computed in float32. Recurses into jit, scan, remat, cond, while and `jax.custom_jvp`; the
  Python functions behind a `jax.custom_vjp` are called again as they are, with bfloat16 where matmuls feed them.

  Args:
    fn: any function of pytrees of arrays.

  Returns:
    A function with the arguments, the outputs and the dtypes of `fn`, differentiable in reverse mode. Gradients have
    the dtypes of the arguments.
  """
  return rewrite(fn, RULES)


def _dot_general(name_stack, eqn, inputs):
  del name_stack
  if any(var.aval.dtype not in (jnp.float32, jnp.bfloat16) for var in (*eqn.invars, *eqn.outvars)):
    return bind(eqn, inputs)
  product = matmul.dot_general(*inputs, eqn.params['dimension_numbers'], eqn.params['out_sharding'])
  return [product.astype(eqn.outvars[0].aval.dtype)]


def _gather(name_stack, eqn, inputs):
  """As it was; a rule makes an activation of what is looked up, such as the rows of an embedding."""
  del name_stack
  return bind(eqn, inputs)


RULES = {'dot_general': _dot_general, 'gather': _gather}
