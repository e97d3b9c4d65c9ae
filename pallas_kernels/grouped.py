"""Products of groups of rows, each group with a matrix of its own: what a layer of experts computes.

Shapes in names: S rows, G groups, D inputs, F outputs.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.deferred import Output, defer
from pallas_kernels.device import current
from pallas_kernels.sharding import vary_alike

IMPLEMENTATIONS = ('blocks', 'ragged_dot')


def grouped_matmul(rows, weights, sizes, *, implementation: str = 'auto'):
  """Multiplies consecutive groups of rows, each by its own matrix.

  The first sizes[0] rows belong to group 0, the next sizes[1] to group 1, and so on; rows behind the last group belong
  to none and become zeros. The work grows with the rows and not with the number of groups. Differentiable in rows and
  weights; one equation of the jaxpr (see `deferred`). Over several devices it belongs inside `jax.shard_map`.

  Args:
    rows: [rows, inputs], floating point. Matrix products take operands of its dtype and accumulate in float32 (float64
      for float64).
    weights: [groups, inputs, outputs], any floating dtype; its gradient has the same.
    sizes: int32 [groups], of which the sum is at most the number of rows.
    implementation: 'blocks' loops over blocks of rows, any device, made for CPUs; 'ragged_dot' is XLA's, which on a
      CPU (and on many GPUs) multiplies every row by every group's matrix; 'auto' takes blocks on CPUs, ragged_dot
      elsewhere.

  Returns:
    [rows, outputs] in float32 (float64 for float64 rows).

  Raises:
    ValueError: shapes or dtypes are not as above, or `implementation` does not exist.
  """
  _check(rows, weights, sizes)
  if implementation == 'auto':
    implementation = 'blocks' if current().platform == 'cpu' else 'ragged_dot'
  if implementation not in IMPLEMENTATIONS:
    raise ValueError(
      f"there is no grouped_matmul implementation {implementation!r}; use 'auto' or one of {list(IMPLEMENTATIONS)}"
    )
  output = Output(0, (rows.shape[0], weights.shape[2]), _computed(rows))
  with jax.named_scope(f'grouped_{implementation}'):
    (out,) = defer(_evaluate, (implementation,), 1, (output,), rows, weights, sizes)
  return out


def _check(rows, weights, sizes):
  if rows.ndim != 2 or weights.ndim != 3 or rows.shape[1] != weights.shape[1] or sizes.shape != weights.shape[:1]:
    raise ValueError(
      'grouped_matmul takes rows [rows, inputs], weights [groups, inputs, outputs] and sizes [groups]; '
      f'got {rows.shape}, {weights.shape}, {sizes.shape}'
    )
  if not all(jnp.issubdtype(x.dtype, jnp.floating) for x in (rows, weights)):
    raise ValueError(f'rows and weights must be floating point; got {rows.dtype} and {weights.dtype}')
  if not jnp.issubdtype(sizes.dtype, jnp.integer):
    raise ValueError(f'sizes must be integers; got {sizes.dtype}')


def _computed(rows):
  return jnp.promote_types(rows.dtype, jnp.float32)


def _evaluate(static, rows, weights, sizes) -> list:
  (implementation,) = static
  return [_matmul(implementation, *vary_alike((rows, weights, sizes)))]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _matmul(implementation, rows, weights, sizes):
  return _PRODUCTS[implementation](rows, weights, sizes)


def _fwd(implementation, rows, weights, sizes):
  return _matmul(implementation, rows, weights, sizes), (rows, weights, sizes)


def _bwd(implementation, kept, d_out):
  rows, weights, sizes = kept
  d_out = d_out.astype(rows.dtype)
  d_rows = _PRODUCTS[implementation](d_out, weights, sizes, transposed=True)
  d_weights = _OUTERS[implementation](rows, d_out, sizes)
  return d_rows.astype(rows.dtype), d_weights.astype(weights.dtype), None


_matmul.defvjp(_fwd, _bwd)


def _block_product(rows, weights, sizes, transposed=False):
  """rows @ weights[group], or @ weights[group].T; a group's matrix is fetched once, then its rows block by block."""
  contracted = 1 if transposed else 0

  def group(g, out):
    weight = lax.dynamic_index_in_dim(weights, g, keepdims=False).astype(rows.dtype)

    def step(at, mine, out):
      product = _dot(_cut(rows, at, block), weight, 1, contracted)
      # What the block has of other groups stays as it is.
      kept = jnp.where(mine[:, None], product, _cut(out, at, block))
      return lax.dynamic_update_slice_in_dim(out, kept, at, axis=0)

    return _over_blocks(step, out, g, sizes, block, len(rows))

  block = _block(rows, sizes)
  out = jnp.zeros((len(rows), weights.shape[2 - contracted]), _computed(rows))
  return lax.fori_loop(0, len(sizes), group, vary_alike(out, (rows, weights, sizes)))


def _block_outer(rows, d_out, sizes):
  """The sum over the rows of each group of rows x d_out: [G, D, F]."""
  rows_DxS = lax.optimization_barrier(rows.T)

  def group(g, sums):
    def step(at, mine, total):
      left_DxR = jnp.where(mine, lax.dynamic_slice_in_dim(rows_DxS, at, block, axis=1), 0)
      return total + _dot(left_DxR, _cut(d_out, at, block), 1, 0)

    total = vary_alike(jnp.zeros(sums.shape[1:], sums.dtype), (rows, d_out, sizes))
    return lax.dynamic_update_index_in_dim(sums, _over_blocks(step, total, g, sizes, block, len(rows)), g, axis=0)

  block = _block(rows, sizes)
  sums = jnp.zeros((len(sizes), rows.shape[1], d_out.shape[1]), _computed(rows))
  return lax.fori_loop(0, len(sizes), group, vary_alike(sums, (rows, d_out, sizes)))


def _block(rows, sizes) -> int:
  """Rows of a block: about half of what groups have on average, so that little is computed in vain at their ends."""
  half = len(rows) // (2 * len(sizes))
  return min(len(rows), max(64, min(256, half // 32 * 32)))


def _over_blocks(step, carry, group, sizes, block, num_rows):
  """`step(first row of the block, which of its rows belong to the group, carry)` for each block of a group."""
  end = jnp.sum(jnp.where(jnp.arange(len(sizes)) <= group, sizes, 0))

  def advance(state):
    first, carry = state
    at = jnp.minimum(first, num_rows - block)
    row = at + jnp.arange(block)
    return first + block, step(at, (row >= first) & (row < end), carry)

  return lax.while_loop(lambda state: state[0] < end, advance, (end - sizes[group], carry))[1]


def _cut(x, at, block):
  return lax.dynamic_slice_in_dim(x, at, block, axis=0)


def _dot(a, b, contract_a, contract_b):
  return lax.dot_general(a, b, (((contract_a,), (contract_b,)), ((), ())), preferred_element_type=_computed(a))


def _ragged_product(rows, weights, sizes, transposed=False):
  weights = weights.astype(rows.dtype)
  weights = jnp.swapaxes(weights, 1, 2) if transposed else weights
  out = lax.ragged_dot(rows, weights, sizes, preferred_element_type=_computed(rows))
  return jnp.where(jnp.arange(len(rows))[:, None] < jnp.sum(sizes), out, 0)


def _ragged_outer(rows, d_out, sizes):
  over_rows = lax.RaggedDotDimensionNumbers((((0,), (0,)), ((), ())), [0], [])
  return lax.ragged_dot_general(rows, d_out, sizes, over_rows, preferred_element_type=_computed(rows))


_PRODUCTS = {'blocks': _block_product, 'ragged_dot': _ragged_product}
_OUTERS = {'blocks': _block_outer, 'ragged_dot': _ragged_outer}
