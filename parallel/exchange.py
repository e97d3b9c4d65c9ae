"""Rows on their way to the devices that hold their experts, and back.

Functions of arrays and mesh axis names, for use inside `jax.shard_map`. The devices along `axes` hold equally many
consecutive experts each. Every function calls `experts` with the rows that the experts of this device get from all
devices, sorted by expert, and returns what becomes of the rows that this device gave. Without axes this is `experts`.

Shapes in names: N devices along the axes, E experts of all of them, S rows of this device, D width.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

Axes = tuple[str, ...]


def equal(experts: Callable, rows_SxD, num_experts: int, axes: Axes):
  """Passes rows through experts of which each gets as many from every device: one all-to-all there, one back.

  Args:
    experts: from rows [S, D] sorted by expert, equally many each, to as many rows.
    rows_SxD: S / E for each expert of all devices, in the order of the experts.
    num_experts: E.
    axes: names of mesh axes that split the experts, perhaps none.

  Returns:
    A row for each of `rows_SxD`, in their place.
  """
  if not axes:
    return experts(rows_SxD)
  rows = rows_SxD.reshape(num_experts, -1, rows_SxD.shape[1])
  rows = _kept(lax.all_to_all(rows, axes, split_axis=0, concat_axis=1, tiled=True))
  out = experts(rows.reshape(-1, rows.shape[2])).reshape(*rows.shape[:2], -1)
  out = _kept(lax.all_to_all(out, axes, split_axis=1, concat_axis=0, tiled=True))
  return out.reshape(len(rows_SxD), -1)


def ragged(experts: Callable, rows_SxD, sizes_E, most_sent: int, axes: Axes):
  """Passes rows through experts of which each gets as many as there are: one ragged all-to-all there, one back.

  Each expert's rows are a slice of their own, which goes at once to where it belongs behind those of other devices, so
  that nothing is sorted on arrival. What travels are the rows that there are; only the memory that they arrive in is
  for the most there can be.

  Args:
    experts: from rows [N most_sent, D] sorted by expert and int32 [E / N], how many of them each expert has, to as many
      rows; what stands behind the last expert's is zeros and has no meaning.
    rows_SxD: sorted by expert; behind the last expert's may be others, for which zeros are returned.
    sizes_E: int32, the rows of each expert.
    most_sent: rows that a device may have for the experts of one device.
    axes: names of mesh axes that split the experts, perhaps none.

  Returns:
    A row for each of `rows_SxD`, in their place.
  """
  if not axes:
    return experts(rows_SxD, sizes_E)
  sizes_NxE = _kept(lax.all_gather(sizes_E, axes))
  most_rows = len(sizes_NxE) * most_sent
  there, back = _routes(sizes_NxE, axes)
  sizes_of_mine = jnp.sum(_of_mine(sizes_NxE, axes), axis=0)
  rows = _kept(_move(rows_SxD, there, back, len(rows_SxD), most_rows, axes))
  return _kept(_move(experts(rows, sizes_of_mine), back, there, most_rows, len(rows_SxD), axes))


def gathered(experts: Callable, arrays: tuple, axes: Axes):
  """Passes the rows of all devices by the experts of each: one all-gather there, one reduce-scatter back.

  Args:
    experts: from `arrays`, the rows of all devices one after the other, to a row for each: what the experts of this
      device give, which is added up over devices.
    arrays: each [S, ...].
    axes: names of mesh axes that split the experts, perhaps none.

  Returns:
    [S, D], the sum over the devices' experts.
  """
  if not axes:
    return experts(*arrays)
  out = experts(*[lax.all_gather(x, axes, tiled=True) for x in arrays])
  return lax.psum_scatter(out, axes, scatter_dimension=0, tiled=True)


def _routes(sizes_NxE, axes):
  """Arguments of the ragged all-to-all there and back: offsets here, sizes sent, offsets there, sizes received.

  A device holds its rows by expert, and then those that its experts get by expert and device.
  """
  me = lax.axis_index(axes)
  devices, experts = sizes_NxE.shape
  given_NxE = jnp.cumsum(sizes_NxE, axis=1) - sizes_NxE
  total_NxE = jnp.sum(sizes_NxE, axis=0).reshape(devices, -1)
  first_E = (jnp.cumsum(total_NxE, axis=1) - total_NxE).reshape(experts)
  gotten_NxE = first_E + jnp.cumsum(sizes_NxE, axis=0) - sizes_NxE
  mine = functools.partial(lax.dynamic_index_in_dim, index=me, keepdims=False)
  my_experts = lambda values: _of_mine(values, axes).reshape(-1)
  there = mine(given_NxE), mine(sizes_NxE), mine(gotten_NxE), my_experts(sizes_NxE)
  back = my_experts(gotten_NxE), my_experts(sizes_NxE), my_experts(given_NxE), mine(sizes_NxE)
  return there, back


def _kept(x):
  """What has arrived need not be sent again in a backward pass."""
  return checkpoint_name(x, 'residual')


def _of_mine(values_NxE, axes):
  """The columns of the experts of this device."""
  devices, experts = values_NxE.shape
  size = experts // devices
  return lax.dynamic_slice_in_dim(values_NxE, lax.axis_index(axes) * size, size, axis=1)


# The way back is the transpose of the way there. The derivative of JAX's own would exchange the offsets anew.
@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _move(rows, route, reverse, given, gotten, axes):
  """`given` rows here become `gotten` rows; zeros where no row goes."""
  del reverse, given
  empty = jnp.zeros((gotten, rows.shape[1]), rows.dtype)
  empty = lax.pcast(empty, tuple(jax.typeof(rows).manual_axis_type.varying), to='varying')
  return lax.ragged_all_to_all(rows, empty, *route, axis_name=axes)


_move.defvjp(
  lambda rows, route, reverse, *static: (_move(rows, route, reverse, *static), (route, reverse)),
  lambda given, gotten, axes, routes, gradient: (_move(gradient, *routes[::-1], gotten, given, axes), None, None),
)
