"""Matmuls with bfloat16 operands and float32 accumulation, forward and backward."""

import functools
import string
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp


class _Spec(NamedTuple):
  dimension_numbers: Any
  lhs_dtype: Any
  rhs_dtype: Any
  out_dtype: Any
  out_sharding: Any


def dot_general(lhs, rhs, dimension_numbers, out_dtype=jnp.float32, out_sharding=None):
  """`lax.dot_general` of float operands, rounded to bfloat16; returns float32.

  The transpose that jax derives would multiply a float32 cotangent by a bfloat16 operand, which no matrix unit
  serves; here the cotangent is rounded too. Gradients arrive in the dtypes of `lhs` and `rhs`, so those of float32
  parameters are accumulated and returned in float32.
  """
  contract, batch = (tuple(tuple(map(int, dims)) for dims in pair) for pair in dimension_numbers)
  return _dot(_Spec((contract, batch), lhs.dtype, rhs.dtype, out_dtype, out_sharding), lhs, rhs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _dot(spec, lhs, rhs):
  return _forward(spec, lhs, rhs)[0]


def _forward(spec, lhs, rhs):
  lhs, rhs = lhs.astype(jnp.bfloat16), rhs.astype(jnp.bfloat16)
  out = lax.dot_general(lhs, rhs, spec.dimension_numbers, preferred_element_type=jnp.float32,
                        out_sharding=spec.out_sharding)
  return _result(out, spec.out_dtype), (lhs, rhs)


def _backward(spec, operands, cotangent):
  lhs, rhs = operands
  cotangent = cotangent.astype(jnp.bfloat16)
  lhs_names, rhs_names, out_names = _names(spec.dimension_numbers, lhs.ndim, rhs.ndim)
  d_lhs = _contract(cotangent, out_names, rhs, rhs_names, lhs_names)
  d_rhs = _contract(lhs, lhs_names, cotangent, out_names, rhs_names)
  return _result(d_lhs, spec.lhs_dtype), _result(d_rhs, spec.rhs_dtype)


_dot.defvjp(_forward, _backward)


def _result(out, dtype):
  # XLA's CPU backend fails at run time where a transposition directly follows a bfloat16 dot with float32 output.
  return lax.optimization_barrier(out) if dtype == jnp.float32 else out.astype(dtype)


def _names(dimension_numbers, lhs_ndim, rhs_ndim):
  """Names the dimensions of lhs, rhs and output, as einsum would."""
  (lhs_contract, rhs_contract), (lhs_batch, rhs_batch) = dimension_numbers
  letters = iter(string.ascii_letters)
  lhs = [next(letters) for _ in range(lhs_ndim)]
  rhs = [next(letters) for _ in range(rhs_ndim)]
  for l, r in zip(lhs_contract + lhs_batch, rhs_contract + rhs_batch):
    rhs[r] = lhs[l]
  shared = {lhs[i] for i in lhs_contract + lhs_batch}
  out = [lhs[i] for i in lhs_batch] + [n for n in lhs if n not in shared] + [n for n in rhs if n not in shared]
  return lhs, rhs, out


def _contract(a, a_names, b, b_names, out_names):
  """Contracts the names that `out_names` lacks. Of the two orders of the operands, takes the one that needs no
  transposition of the result: XLA's CPU backend cannot transpose the output of a bfloat16 dot (it fails at run time)."""
  pairs = [(a, a_names, b, b_names), (b, b_names, a, a_names)]
  out = None
  for first, first_names, second, second_names in pairs:
    batch = [n for n in out_names if n in first_names and n in second_names]
    contract = [n for n in first_names if n in second_names and n not in out_names]
    natural = batch + [n for names in (first_names, second_names) for n in names if n not in batch + contract]
    if natural == out_names:
      return _dot_names(first, first_names, second, second_names, contract, batch)
    out = natural, (first, first_names, second, second_names, contract, batch)
  natural, arguments = out
  result = lax.optimization_barrier(_dot_names(*arguments))
  return result.transpose([natural.index(n) for n in out_names])


def _dot_names(a, a_names, b, b_names, contract, batch):
  dims = lambda names, wanted: tuple(names.index(n) for n in wanted)
  contracting, batching = (dims(a_names, contract), dims(b_names, contract)), (dims(a_names, batch), dims(b_names, batch))
  if not batch and contracting == ((0,), (0,)):
    # `md,mf->df` misses the fast kernels of a CPU; the same with two contracted dimensions, of which one is 1, does not.
    a, b, contracting = a[None], b[None], ((0, 1), (0, 1))
  return lax.dot_general(a, b, (contracting, batching), preferred_element_type=jnp.float32)
