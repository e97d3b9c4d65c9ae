"""The gradient of the queries on Hopper, where `keys` leaves it.

As in the forward kernel, a warpgroup owns 64 queries and visits blocks of keys.
"""

import functools
import types

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.hopper.kernel import (
  ROWS,
  Call,
  Visits,
  add_product,
  free,
  load_keys,
  products,
  registers,
  scratch_of_keys,
  transforms,
)
from pallas_kernels.hopper.tile import tile_of_keys
from pallas_kernels.hopper.tuning import Queries


def gradient(q, k, v, d_out, rows: dict, arrays: dict, ranges, call: Call, tuning: Queries):
  """Returns the gradient of q, and, where there are slopes, each query's share of theirs, float32 like the lse.

  Args:
    q, d_out: [batch, padded q_len, heads, head_dim].
    k, v: [batch, padded kv_len, kv_heads, head_dim].
    rows: 'lse' in base 2, +inf where a query sees nothing, and 'd_row', the sum of d_out * out less the gradient of the
      lse: float32 [batch, heads, queries of all tiles].
    arrays: the spec's arrays, as `attention` lays them out.
    ranges: int32 [batch or 1, q_tiles, 5], from `visible_ranges`.
    call: what is static.
    tuning: sizes of blocks and stages.
  """
  shapes, q_tiles = call.shapes, ranges.shape[1]
  out = [jax.ShapeDtypeStruct(q.shape, q.dtype)]
  if 'alibi_slopes' in arrays:
    out.append(jax.ShapeDtypeStruct(rows['lse'].shape, jnp.float32))
  return call.kernel(
    'attention_d_queries',
    functools.partial(_kernel, call=call, tuning=tuning, q_tiles=q_tiles),
    num_threads=tuning.warpgroups + 1,
    grid=(shapes.heads, q_tiles, shapes.batch),
    grid_names=('head', 'tile', 'batch'),
    scratch_types=_scratch(arrays, call, tuning, q.dtype),
    out_type=out,
  )(q, k, v, d_out, rows, arrays, ranges)


def _scratch(arrays, call, tuning, dtype):
  groups, k_size, head_dim = tuning.warpgroups, tuning.k_size, call.shapes.head_dim
  tile = transforms(head_dim, dtype)
  mine, row = plgpu.SMEM((groups, ROWS, head_dim), dtype, transforms=tile), plgpu.SMEM((groups, ROWS), jnp.float32)
  barriers = lambda copies, number: plgpu.Barrier(num_arrivals=copies, num_barriers=number)
  scratch, copies = scratch_of_keys(arrays, call, tuning.stages, groups, k_size)
  return scratch | {
    'q': mine,
    'd_out': mine,
    'lse': row,
    'd_row': row,
    'q_loaded': barriers(4 + bool(call.tokens), groups),
    'k': plgpu.SMEM((tuning.stages, k_size, head_dim), dtype, transforms=tile),
    'v': plgpu.SMEM((tuning.v_stages, k_size, head_dim), dtype, transforms=tile),
    'k_loaded': barriers(1 + copies, tuning.stages),
    'k_freed': barriers(groups, tuning.stages),
    'v_loaded': barriers(1, tuning.v_stages),
    'v_freed': barriers(groups, tuning.v_stages),
  }


def _kernel(q_ref, k_ref, v_ref, d_out_ref, rows, arrays, ranges, d_q_ref, *d_slopes, call, tuning, q_tiles, **scratch):
  smem = types.SimpleNamespace(**scratch)
  head, batch, warpgroup = (lax.axis_index(name) for name in ('head', 'batch', 'warpgroup'))
  tile = q_tiles - 1 - lax.axis_index('tile')  # of causal attention the longest first
  visits = Visits(ranges, batch, tile)
  q_start = tile * (tuning.warpgroups * ROWS)
  loading, computing = registers(tuning.warpgroups)

  @pl.when(warpgroup == tuning.warpgroups)
  def _():
    plgpu.set_max_registers(loading, action='decrease')
    load_keys(k_ref, v_ref, arrays, smem, call, batch, head, q_start, visits)

  @pl.when(warpgroup < tuning.warpgroups)
  def _():
    plgpu.set_max_registers(computing, action='increase')
    start = q_start + warpgroup * ROWS
    place, ready = pl.ds(start, ROWS), smem.q_loaded.at[warpgroup]
    for ref, to in ((q_ref, smem.q), (d_out_ref, smem.d_out)):
      plgpu.copy_gmem_to_smem(ref.at[batch, place, head], to.at[warpgroup], ready)
    for name in ('lse', 'd_row'):
      plgpu.copy_gmem_to_smem(rows[name].at[batch, head, place], getattr(smem, name).at[warpgroup], ready)
    if call.tokens:
      plgpu.copy_gmem_to_smem(arrays['q_tokens'].at[:, batch, place], smem.q_tokens.at[warpgroup], ready)
    plgpu.barrier_wait(ready)
    d_q, d_slope = _accumulate(arrays, smem, call, tuning, batch, head, warpgroup, start, visits)
    smem.q.at[warpgroup][...] = d_q.astype(smem.q.dtype)
    if d_slopes:
      smem.lse.at[warpgroup][...] = d_slope
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(smem.q.at[warpgroup], d_q_ref.at[batch, place, head])
    if d_slopes:
      plgpu.copy_smem_to_gmem(smem.lse.at[warpgroup], d_slopes[0].at[batch, head, place])
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)


def _accumulate(arrays, smem, call, tuning, batch, head, warpgroup, q_start, visits):
  """Returns the gradient of a warpgroup's queries, float32 [ROWS, head_dim], and of the slope, float32 [ROWS]."""
  dtype = smem.q.dtype
  lse, d_row = smem.lse.at[warpgroup][...], smem.d_row.at[warpgroup][...]

  def step(n, carry, masked):
    d_q, d_slope = carry
    # The zero keeps the places of all parts of q, d_out, k and v from taking registers through the loop.
    zero = visits.zero
    mine, slot, v_slot = warpgroup + zero, lax.rem(n, tuning.stages) + zero, lax.rem(n, tuning.v_stages) + zero
    k_start = visits.block(n, masked) * tuning.k_size
    tile = tile_of_keys(arrays, smem, call, slot, warpgroup, batch, head, q_start, k_start)
    plgpu.barrier_wait(smem.k_loaded.at[slot])
    plgpu.barrier_wait(smem.v_loaded.at[v_slot])

    def start(sums):
      scores, d_p = sums
      scores.add(smem.q.at[mine], smem.k.at[slot], transpose_b=True)
      d_p.add(smem.d_out.at[mine], smem.v.at[v_slot], transpose_b=True)
      logits, slope = tile.logits(scores.value(in_flight=1), masked)
      return slope, jnp.exp2(logits * tile.factor - tile.of_queries(lse))

    zeros = jnp.zeros(tile.shape, jnp.float32)
    results = zeros if call.spec.softcap else (), zeros
    (_, d_p), (slope, p) = products(start, (zeros, zeros), results, simulated=call.simulated)
    plgpu.barrier_arrive(smem.v_freed.at[v_slot])
    d_logits = p * (tile.drop(d_p) - tile.of_queries(d_row))
    if 'alibi_slopes' in arrays:
      d_slope = d_slope - jnp.sum(d_logits * tile.distance(), axis=1)
    d_scores = tile.through_softcap(d_logits, slope).astype(dtype)
    d_q = add_product(d_q, d_scores, smem.k.at[slot], simulated=call.simulated)
    free(smem.k_freed.at[slot], read=tile.loads_with_keys(masked))
    return d_q, d_slope

  carry = jnp.zeros((ROWS, call.shapes.head_dim), jnp.float32), jnp.zeros((ROWS,), jnp.float32)
  d_q, d_slope = visits.run(step, carry)
  return d_q * call.spec.scale, d_slope
