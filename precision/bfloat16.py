"""bfloat16 as a transformation: the rules of matmuls."""

from precision import matmul
from precision.lazy import bind
from precision.rewrite import rewrite
import jax.numpy as jnp


def bf16(fn):
  """Mixed precision for any function, as autocast does, ahead of time.

  Matmuls take bfloat16 operands and accumulate in float32, forward and backward; what flows from one to the next is
  bfloat16, also in what is kept for the backward pass; reductions, norms, softmax and losses stay float32.
  Recurses into jit, scan, remat, cond, while. Functions with a `jax.custom_vjp` stay as they are and are given bfloat16 where
  matmuls feed them. 

  Args:
    fn: any function of pytrees of arrays.

  Returns:
    A function with the same arguments and outputs, in the same dtypes, differentiable in reverse mode.
  """
  return rewrite(fn, RULES)


def _dot_general(name_stack, eqn, inputs):
  if not all(var.aval.dtype in (jnp.float32, jnp.bfloat16) for var in (*eqn.invars, *eqn.outvars)):
    return bind(eqn, inputs)
  return [matmul.dot_general(*inputs, eqn.params['dimension_numbers'], eqn.params['out_sharding'])]


def _gather(name_stack, eqn, inputs):
  """Rows looked up in a table, such as an embedding, are where activations begin."""
  return bind(eqn, inputs)


RULES = {'dot_general': _dot_general, 'gather': _gather}
