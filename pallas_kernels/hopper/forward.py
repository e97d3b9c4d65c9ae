"""Forward attention on Hopper: one warpgroup loads, the others take turns on the tensor cores.

A compute warpgroup owns 64 queries of one head. While its product P V of one key block runs, it starts Q K^T of the
next and does that block's softmax; a chain of barriers gives the tensor cores to one warpgroup after the other, so that
the softmax of one hides behind the products of another (Shah et al. 2024, FlashAttention-3, sections 3.1 and 3.2).
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
from pallas_kernels.hopper.tile import LOG2E, tile_of_keys
from pallas_kernels.hopper.tuning import Forward

# Where a maximum starts. It is finite so that a row that has seen nothing yet needs no care: exp2(-inf - that) = 0.
_LOWEST = -1e30


def forward(q, k, v, arrays: dict, ranges, call: Call, tuning: Forward):
  """Returns the output, like q, and lse, float32 [batch, heads, queries of all tiles], garbage beyond q_len.

  Args:
    q: [batch, padded q_len, heads, head_dim].
    k, v: [batch, padded kv_len, kv_heads, head_dim].
    arrays: the spec's arrays, as `attention` lays them out.
    ranges: int32 [batch or 1, q_tiles, 5], from `visible_ranges`.
    call: what is static.
    tuning: sizes of blocks and stages.
  """
  shapes, q_tiles = call.shapes, ranges.shape[1]
  return call.kernel(
    'attention_forward',
    functools.partial(_kernel, call=call, tuning=tuning, q_tiles=q_tiles),
    num_threads=tuning.warpgroups + 1,
    grid=(shapes.heads, q_tiles, shapes.batch),
    grid_names=('head', 'tile', 'batch'),
    scratch_types=_scratch(arrays, call, tuning, q.dtype),
    out_type=[
      jax.ShapeDtypeStruct(q.shape, q.dtype),
      jax.ShapeDtypeStruct((shapes.batch, shapes.heads, q_tiles * tuning.warpgroups * ROWS), jnp.float32),
    ],
  )(q, k, v, arrays, ranges)


def _scratch(arrays, call, tuning, dtype):
  groups, stages, k_size, head_dim = tuning.warpgroups, tuning.stages, tuning.k_size, call.shapes.head_dim
  rows = transforms(head_dim, dtype)
  block = plgpu.SMEM((stages, k_size, head_dim), dtype, transforms=rows)
  freed = plgpu.Barrier(num_arrivals=groups, num_barriers=stages)
  scratch = {
    'q': plgpu.SMEM((groups, ROWS, head_dim), dtype, transforms=rows),
    'k': block,
    'v': block,
    'lse': plgpu.SMEM((groups, ROWS), jnp.float32),
    'k_freed': freed,
    'v_freed': freed,
    'turn': plgpu.Barrier(num_barriers=groups),
    'v_loaded': plgpu.Barrier(num_barriers=stages),
  }
  more, copies = scratch_of_keys(arrays, call, stages, groups, k_size)
  scratch['q_loaded'] = plgpu.Barrier(num_arrivals=1 + bool(call.tokens), num_barriers=groups)
  scratch['k_loaded'] = plgpu.Barrier(num_arrivals=1 + copies, num_barriers=stages)
  return scratch | more


def _kernel(q_ref, k_ref, v_ref, arrays, ranges, out_ref, lse_ref, *, call, tuning, q_tiles, **scratch):
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
    rows, my_q = pl.ds(start, ROWS), smem.q.at[warpgroup]
    plgpu.copy_gmem_to_smem(q_ref.at[batch, rows, head], my_q, smem.q_loaded.at[warpgroup])
    if call.tokens:
      plgpu.copy_gmem_to_smem(
        arrays['q_tokens'].at[:, batch, rows], smem.q_tokens.at[warpgroup], smem.q_loaded.at[warpgroup]
      )
    plgpu.barrier_wait(smem.q_loaded.at[warpgroup])
    out, lse = _attend(arrays, smem, call, tuning, batch, head, warpgroup, start, visits)
    my_q[...] = out.astype(my_q.dtype)
    smem.lse.at[warpgroup][...] = lse
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(my_q, out_ref.at[batch, rows, head])
    plgpu.copy_smem_to_gmem(smem.lse.at[warpgroup], lse_ref.at[batch, head, rows])
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)


def _attend(arrays, smem, call, tuning, batch, head, warpgroup, q_start, visits):
  """Returns the output, float32 [ROWS, head_dim], and the lse, float32 [ROWS], of one warpgroup."""
  my_q, dtype = smem.q.at[warpgroup], smem.q.dtype
  wide = call.shapes.head_dim > 128
  slot_of = lambda n: lax.rem(n, tuning.stages)

  def softmax(scores, block, slot, masked, maximum, total):
    tile = tile_of_keys(arrays, smem, call, slot, warpgroup, batch, head, q_start, block * tuning.k_size)
    logits, _ = tile.logits(scores, masked)
    free(smem.k_freed.at[slot], read=tile.loads_with_keys(masked))
    higher = jnp.maximum(maximum, jnp.max(logits, axis=1) * tile.factor)
    shrink = jnp.exp2(maximum - higher)
    p = jnp.exp2(logits * tile.factor - tile.of_queries(higher))
    return higher, total * shrink + jnp.sum(p, axis=1), shrink, tile.drop(p)

  def await_keys(n):
    pl.when(n < visits.count)(lambda: plgpu.barrier_wait(smem.k_loaded.at[slot_of(n)]))

  def step(n, carry, masked):
    out, maximum, total, p = carry
    slot, before = slot_of(n), slot_of(n - 1)
    mine = smem.q.at[warpgroup + visits.zero] if wide else my_q  # the places of many parts of q would take registers
    plgpu.barrier_wait(smem.turn.at[warpgroup])

    def body(sums):
      out, scores = sums
      scores.add(mine, smem.k.at[slot], transpose_b=True)
      plgpu.barrier_wait(smem.v_loaded.at[before])
      out.add(p, smem.v.at[before])
      plgpu.barrier_arrive(smem.turn.at[lax.rem(warpgroup + 1, tuning.warpgroups)])
      found = softmax(scores.value(in_flight=1), visits.block(n, masked), slot, masked, maximum, total)
      # Waiting for the next keys here, and not at the start of their step, also keeps the compiler from moving the
      # softmax behind the end of P V, where it would run alone.
      await_keys(n + 1)
      return found

    zeros = jnp.zeros((ROWS, tuning.k_size), jnp.float32)
    (out, _), (maximum, total, shrink, p) = products(
      body, (out, zeros), (maximum, total, total, zeros), simulated=call.simulated
    )
    plgpu.barrier_arrive(smem.v_freed.at[before])
    # The registers of the last P are read until here: only now may the next take their place.
    out, p = lax.optimization_barrier((out, p))
    return out * lax.broadcast_in_dim(shrink, out.shape, [0]), maximum, total, p.astype(dtype)

  maximum, total = jnp.full((ROWS,), _LOWEST, jnp.float32), jnp.zeros((ROWS,), jnp.float32)
  if 'sinks' in arrays:
    maximum, total = jnp.full((ROWS,), arrays['sinks'][head] * LOG2E, jnp.float32), jnp.ones((ROWS,), jnp.float32)
  pl.when(warpgroup == tuning.warpgroups - 1)(lambda: plgpu.barrier_arrive(smem.turn.at[0]))
  first = slot_of(visits.count * 0)
  plgpu.barrier_wait(smem.k_loaded.at[first])
  zeros = jnp.zeros((ROWS, tuning.k_size), jnp.float32)
  scores = add_product(zeros, my_q, smem.k.at[first], transpose_b=True, simulated=call.simulated)
  maximum, total, _, p = softmax(scores, visits.block(0), first, True, maximum, total)
  await_keys(1)
  carry = jnp.zeros((ROWS, call.shapes.head_dim), jnp.float32), maximum, total, p.astype(dtype)
  carry = visits.run(step, carry, first=1)
  out, maximum, total, p = carry
  last = slot_of(visits.count - 1)
  plgpu.barrier_wait(smem.v_loaded.at[last])
  out = add_product(out, p, smem.v.at[last], simulated=call.simulated)
  plgpu.barrier_arrive(smem.v_freed.at[last])
  pl.when(warpgroup == 0)(lambda: plgpu.barrier_wait(smem.turn.at[0]))
  return _normalised(out, maximum, total)


def _normalised(out, maximum, total):
  sees = total > 0
  safe = jnp.where(sees, total, 1.0)
  lse = jnp.where(sees, (maximum + jnp.log2(safe)) * (1 / LOG2E), -jnp.inf)
  return out * lax.broadcast_in_dim(jnp.where(sees, 1 / safe, 0.0), out.shape, [0]), lse
