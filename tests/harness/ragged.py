"""A ragged all-to-all for devices that have none."""

import jax.numpy as jnp
from jax import lax


def ragged_all_to_all(operand, output, input_offsets, send_sizes, output_offsets, recv_sizes, *, axis_name):
  """What the documentation of `jax.lax.ragged_all_to_all` says; NaN where the sizes received are not those sent."""
  everywhere = [lax.all_gather(x, axis_name) for x in (operand, input_offsets, send_sizes, output_offsets)]
  own = lax.all_to_all(recv_sizes, axis_name, 0, 0, tiled=True)
  output = jnp.where(jnp.all(own == send_sizes), output, jnp.nan)
  me, slices = lax.axis_index(axis_name), len(send_sizes) // lax.axis_size(axis_name)
  place = jnp.arange(len(output))
  for operand, first, size, there in zip(*everywhere):
    for i in range(slices):
      i = me * slices + i
      inside = (place >= there[i]) & (place < there[i] + size[i])
      output = jnp.where(inside[:, None], operand[jnp.where(inside, place - there[i] + first[i], 0)], output)
  return output
