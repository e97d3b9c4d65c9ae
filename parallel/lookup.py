"""Rows of a table of which each device holds a part. B batch, L length, D embed."""

import jax
import jax.numpy as jnp
from jax import lax


def lookup(table, ids_BxL, *, rows=(), width=(), scatter_length: bool = False) -> jax.Array:
  """Inside `shard_map`: the rows of a table by their numbers; the table stays where it is and what was found travels.

  Of a table whose rows lie in parts (Shoeybi et al. 2019, Megatron-LM, section 3) each device finds those that it has,
  and the others add zeros. Of one whose width lies in parts, over devices that have text of their own, each device
  finds its part of the width for the text of all of them, and one all-to-all brings the parts together.

  Args:
    table: [rows, D], this device's part.
    ids_BxL: int32, of the whole table; the same on the devices that split its rows.
    rows: mesh axes that split the rows.
    width: mesh axes that split D, and B as well.
    scatter_length: whether each of the devices that split the rows keeps an equal part of L alone: a reduce-scatter in
      the place of an all-reduce.

  Returns:
    [B, L, D], or [B, L / devices, D].
  """
  if width:
    ids_BxL = lax.all_gather(ids_BxL, width, axis=0, tiled=True)
  if not rows:
    x = jnp.take(table, ids_BxL, axis=0)
  else:
    local_BxL = ids_BxL - lax.axis_index(rows) * len(table)
    found_BxL = (local_BxL >= 0) & (local_BxL < len(table))
    x = jnp.take(table, jnp.where(found_BxL, local_BxL, 0), axis=0)
    x = jnp.where(found_BxL[..., None], x, 0.0)
    x = lax.psum_scatter(x, rows, scatter_dimension=1, tiled=True) if scatter_length else lax.psum(x, rows)
  return lax.all_to_all(x, width, split_axis=0, concat_axis=2, tiled=True) if width else x
