"""Matmuls with bfloat16 operands and float32 accumulation, forward and backward."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from precision.layout import row_major


class _Spec(NamedTuple):
  """What a matmul is, besides its operands."""

  dimension_numbers: tuple
  out_sharding: object


def dot_general(lhs, rhs, dimension_numbers, out_sharding=None, narrow=None):
  """`lax.dot_general` of float operands rounded to bfloat16, accumulated in float32.

  The transpose that jax derives would multiply a float32 cotangent by a bfloat16 operand, which no matrix unit
  serves; here the cotangent is rounded too. Gradients come in the dtypes of `lhs` and `rhs`: those of float32
  parameters are float32 sums.

  Args:
    lhs, rhs: float32 or bfloat16.
    dimension_numbers, out_sharding: as for `lax.dot_general`.
    narrow: the two operands rounded already, where they are at hand; all that the backward pass keeps.

  Returns:
    float32.
  """
  contracting, batch = (tuple(tuple(map(int, dims)) for dims in pair) for pair in dimension_numbers)
  narrow = narrow or (lhs.astype(jnp.bfloat16), rhs.astype(jnp.bfloat16))
  return _dot(_Spec((contracting, batch), out_sharding), lhs, rhs, *narrow)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _dot(spec, lhs, rhs, narrow_lhs, narrow_rhs):
  del lhs, rhs
  (lhs_contracting, rhs_contracting), (lhs_batch, rhs_batch) = spec.dimension_numbers
  # The left operand with what is contracted last; the right one either way.
  lhs, lhs_contracting = _arranged(narrow_lhs, lhs_batch, lhs_contracting, orders=('free first',))
  rhs, rhs_contracting = _arranged(narrow_rhs, rhs_batch, rhs_contracting, orders=('contracting first', 'free first'))
  batch = tuple(range(len(lhs_batch)))
  # CPUs have no fast bfloat16 kernel for one row: it is several times slower than two.
  single = (
    not batch and math.prod(lhs.shape[: lhs.ndim - len(lhs_contracting)]) == 1 and lhs.ndim > len(lhs_contracting)
  )
  doubled = single and jax.default_backend() == 'cpu'
  dimension_numbers = (lhs_contracting, rhs_contracting), (batch, batch)
  product = row_major(
    lax.dot_general(
      jnp.concatenate([lhs, lhs]) if doubled else lhs,
      rhs,
      dimension_numbers,
      preferred_element_type=jnp.float32,
      out_sharding=spec.out_sharding,
    )
  )
  return product[:1] if doubled else product


def _arranged(x, batch, contracting, orders):
  """x, transposed to the first of `orders` unless it is in one; and where the contracted dimensions are."""
  free = tuple(i for i in range(x.ndim) if i not in batch + contracting)
  layouts = [batch + (free + contracting if order == 'free first' else contracting + free) for order in orders]
  identity = tuple(range(x.ndim))
  layout = identity if identity in layouts else layouts[0]
  return row_major(x if layout == identity else x.transpose(layout)), tuple(map(layout.index, contracting))


def _forward(spec, lhs, rhs, narrow_lhs, narrow_rhs):
  # Of the wide operands only the dtypes are needed.
  dtypes = jnp.zeros((0,), lhs.dtype), jnp.zeros((0,), rhs.dtype)
  return _dot(spec, lhs, rhs, narrow_lhs, narrow_rhs), (narrow_lhs, narrow_rhs, *dtypes)


def _backward(spec, residuals, cotangent):
  lhs, rhs, *like = residuals
  cotangent = cotangent.astype(jnp.bfloat16)
  lhs_names, rhs_names, out_names = _names(spec.dimension_numbers, lhs.ndim, rhs.ndim)
  d_lhs = _contract(cotangent, out_names, rhs, rhs_names, lhs_names)
  d_rhs = _contract(lhs, lhs_names, cotangent, out_names, rhs_names)
  return d_lhs.astype(like[0].dtype), d_rhs.astype(like[1].dtype), None, None


_dot.defvjp(_forward, _backward)


def _names(dimension_numbers, lhs_ndim, rhs_ndim):
  """Gives each dimension a number, the same to those that a matmul pairs: of lhs, of rhs and of the output."""
  (lhs_contracting, rhs_contracting), (lhs_batch, rhs_batch) = dimension_numbers
  lhs, rhs = list(range(lhs_ndim)), list(range(lhs_ndim, lhs_ndim + rhs_ndim))
  for left, right in zip(lhs_contracting + lhs_batch, rhs_contracting + rhs_batch):
    rhs[right] = lhs[left]
  batch = [lhs[i] for i in lhs_batch]
  free = [name for names, other in ((lhs, rhs), (rhs, lhs)) for name in names if name not in other]
  return lhs, rhs, batch + free


def _contract(a, a_names, b, b_names, out_names):
  """The product of a and b summed over the names that `out_names` lacks, its dimensions ordered as `out_names`."""
  batch = [name for name in out_names if name in a_names and name in b_names]
  summed = [name for name in a_names if name in b_names and name not in out_names]

  def product(x, x_names, y, y_names):
    contracting, batching = (
      tuple(tuple(map(names.index, wanted)) for names in (x_names, y_names)) for wanted in (summed, batch)
    )
    names = batch + [name for names in (x_names, y_names) for name in names if name not in batch + summed]
    return names, lambda: dot_general(x, y, (contracting, batching))

  # One order of the operands often gives the wanted order of dimensions, which saves a transposition.
  swapped, multiply_swapped = product(b, b_names, a, a_names)
  if swapped == out_names:
    return multiply_swapped()
  names, multiply = product(a, a_names, b, b_names)
  return multiply() if names == out_names else multiply().transpose([names.index(name) for name in out_names])
