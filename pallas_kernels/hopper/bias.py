"""The gradient of the bias on Hopper: each block of it sums, in registers, over all that it was broadcast to."""

import functools
import types

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.hopper.kernel import ROWS, Call, free, products, registers, transforms
from pallas_kernels.hopper.tile import Tile, scalars

_WARPGROUPS = 2  # that compute, of 64 queries each
Q_SIZE, K_SIZE = _WARPGROUPS * ROWS, 64


def gradient(q, k, v, d_out, rows: dict, arrays: dict, visible, call: Call):
  """Returns the gradient of the bias, float32 [batch or 1, heads or 1, queries in whole tiles, keys in whole tiles].

  Of a bias that is the same for all queries it returns Q_SIZE rows, which add up to its gradient.

  Args:
    q, d_out: [batch, padded q_len, heads, head_dim].
    k, v: [batch, padded kv_len, kv_heads, head_dim].
    rows: 'lse' in base 2, +inf where a query sees nothing, and 'd_row', the sum of d_out * out less the gradient of the
      lse: float32 [batch, heads, queries in whole tiles].
    arrays: the spec's arrays, as `attention` lays them out.
    visible: int32 [q_tiles, k_tiles], 1 where some query of the batch sees some key, else 0.
    call: what is static.
  """
  batch, heads, length, keys = arrays['bias'].shape
  q_tiles = 1 if length == 1 else visible.shape[0]
  return call.kernel(
    'attention_d_bias',
    functools.partial(_kernel, call=call, q_tiles=visible.shape[0]),
    num_threads=_WARPGROUPS + 1,
    grid=(visible.shape[1], q_tiles, batch * heads),
    grid_names=('k_tile', 'q_tile', 'plane'),
    scratch_types=_scratch(arrays, call, q.dtype),
    out_type=jax.ShapeDtypeStruct((batch, heads, q_tiles * Q_SIZE, keys), jnp.float32),
  )(q, k, v, d_out, rows, arrays, visible)


def _scratch(arrays, call, dtype):
  stages, head_dim, tokens = 2 if call.shapes.head_dim < 128 else 1, call.shapes.head_dim, len(call.tokens)
  block = lambda *number: plgpu.SMEM((*number, 64, head_dim), dtype, transforms=transforms(head_dim, dtype))
  row = plgpu.SMEM((stages, _WARPGROUPS, ROWS), jnp.float32)
  tile = plgpu.SMEM((_WARPGROUPS, ROWS, K_SIZE), jnp.float32, transforms=transforms(K_SIZE, jnp.float32))
  scratch = {
    'q': block(stages, _WARPGROUPS),
    'd_out': block(stages, _WARPGROUPS),
    'k': block(stages),
    'v': block(stages),
    'lse': row,
    'd_row': row,
    'd_bias': tile,
    'loaded': plgpu.Barrier(num_arrivals=2 + (4 + bool(tokens)) * _WARPGROUPS + bool(tokens), num_barriers=stages),
    'freed': plgpu.Barrier(num_arrivals=_WARPGROUPS, num_barriers=stages),
    'bias_loaded': plgpu.Barrier(),
  }
  if tokens:
    scratch['q_tokens'] = plgpu.SMEM((stages, _WARPGROUPS, tokens, ROWS), jnp.int32)
    scratch['kv_tokens'] = plgpu.SMEM((stages, tokens, K_SIZE), jnp.int32)
  if arrays['bias'].shape[2] == 1:
    return scratch | {'bias': plgpu.SMEM((K_SIZE,), jnp.float32)}
  return scratch | {'bias': tile, 'bias_loaded': plgpu.Barrier(num_arrivals=_WARPGROUPS)}


def _kernel(q_ref, k_ref, v_ref, d_out_ref, rows, arrays, visible, d_bias_ref, *, call, q_tiles, **scratch):
  smem = types.SimpleNamespace(**scratch)
  k_tile, q_tile, plane, warpgroup = (lax.axis_index(name) for name in ('k_tile', 'q_tile', 'plane', 'warpgroup'))
  batches, heads, length, _ = arrays['bias'].shape
  first_batch, first_head = lax.div(plane, heads), lax.rem(plane, heads)
  sizes = call.shapes.batch // batches, call.shapes.heads // heads, q_tiles if length == 1 else 1
  count = sizes[0] * sizes[1] * sizes[2] * (1 if length == 1 else visible[q_tile, k_tile])
  keys = pl.ds(k_tile * K_SIZE, K_SIZE)
  loading, computing = registers(_WARPGROUPS)

  def place(n):
    """Batch, head and first query of the n-th summand."""
    batch, rest = lax.div(n, sizes[1] * sizes[2]), lax.rem(n, sizes[1] * sizes[2])
    tile = q_tile + lax.rem(rest, sizes[2])
    return first_batch + batch, first_head + lax.div(rest, sizes[2]), tile * Q_SIZE

  @pl.when(warpgroup == _WARPGROUPS)
  def _():
    plgpu.set_max_registers(loading, action='decrease')
    bias = arrays['bias'].at[first_batch, first_head]
    if length == 1:
      plgpu.copy_gmem_to_smem(bias.at[0, keys], smem.bias, smem.bias_loaded)
    else:
      for n in range(_WARPGROUPS):
        queries = pl.ds(q_tile * Q_SIZE + n * ROWS, ROWS)
        plgpu.copy_gmem_to_smem(bias.at[queries, keys], smem.bias.at[n], smem.bias_loaded)
    _load(q_ref, k_ref, v_ref, d_out_ref, rows, arrays, smem, call, count, keys, place)

  @pl.when(warpgroup < _WARPGROUPS)
  def _():
    plgpu.set_max_registers(computing, action='increase')
    plgpu.barrier_wait(smem.bias_loaded)
    mine = smem.d_bias.at[warpgroup]
    mine[...] = _accumulate(arrays, smem, call, count, warpgroup, k_tile * K_SIZE, place)
    plgpu.commit_smem()
    queries = pl.ds(q_tile * Q_SIZE + warpgroup * ROWS, ROWS)
    plgpu.copy_smem_to_gmem(mine, d_bias_ref.at[first_batch, first_head, queries, keys])
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)


def _load(q_ref, k_ref, v_ref, d_out_ref, rows, arrays, smem, call, count, keys, place):
  stages = smem.k.shape[0]

  @pl.loop(0, count)
  def _(n):
    slot, (batch, head, q_start) = lax.rem(n, stages), place(n)
    kv_head, ready = lax.div(head, call.shapes.heads // call.shapes.kv_heads), smem.loaded.at[slot]
    pl.when(n >= stages)(lambda: plgpu.barrier_wait(smem.freed.at[slot]))
    plgpu.copy_gmem_to_smem(k_ref.at[batch, keys, kv_head], smem.k.at[slot], ready)
    plgpu.copy_gmem_to_smem(v_ref.at[batch, keys, kv_head], smem.v.at[slot], ready)
    if call.tokens:
      plgpu.copy_gmem_to_smem(arrays['kv_tokens'].at[:, batch, keys], smem.kv_tokens.at[slot], ready)
    for part in range(_WARPGROUPS):
      queries = pl.ds(q_start + part * ROWS, ROWS)
      plgpu.copy_gmem_to_smem(q_ref.at[batch, queries, head], smem.q.at[slot, part], ready)
      plgpu.copy_gmem_to_smem(d_out_ref.at[batch, queries, head], smem.d_out.at[slot, part], ready)
      for name in ('lse', 'd_row'):
        plgpu.copy_gmem_to_smem(rows[name].at[batch, head, queries], getattr(smem, name).at[slot, part], ready)
      if call.tokens:
        plgpu.copy_gmem_to_smem(arrays['q_tokens'].at[:, batch, queries], smem.q_tokens.at[slot, part], ready)

  @pl.loop(0, jnp.minimum(count, stages))
  def _(slot):
    plgpu.barrier_wait(smem.freed.at[slot])


def _accumulate(arrays, smem, call, count, warpgroup, k_start, place):
  """Returns the gradient of a warpgroup's part of the block, float32 [ROWS, K_SIZE]."""
  stages, shape = smem.k.shape[0], (ROWS, K_SIZE)

  def step(n, total):
    slot, (batch, head, q_start) = lax.rem(n, stages), place(n)
    tile = Tile(
      call,
      shape,
      0,
      batch,
      head,
      q_start + warpgroup * ROWS,
      k_start,
      q_tokens=smem.q_tokens.at[slot, warpgroup] if call.tokens else None,
      k_tokens=smem.kv_tokens.at[slot] if call.tokens else None,
      bias=smem.bias if len(smem.bias.shape) == 1 else smem.bias.at[warpgroup],
      **scalars(arrays, head),
    )
    plgpu.barrier_wait(smem.loaded.at[slot])

    def start(sums):
      scores, d_p = sums
      scores.add(smem.q.at[slot, warpgroup], smem.k.at[slot], transpose_b=True)
      d_p.add(smem.d_out.at[slot, warpgroup], smem.v.at[slot], transpose_b=True)
      logits, _ = tile.logits(scores.value(in_flight=1), masked=True)
      return jnp.exp2(logits * tile.factor - tile.of_queries(smem.lse.at[slot, warpgroup][...]))

    zeros = jnp.zeros(shape, jnp.float32)
    (_, d_p), p = products(start, (zeros, zeros), zeros, simulated=call.simulated)
    d_row = tile.of_queries(smem.d_row.at[slot, warpgroup][...])
    free(smem.freed.at[slot], read=True)
    return total + p * (tile.drop(d_p) - d_row)

  return lax.fori_loop(0, count, step, jnp.zeros(shape, jnp.float32))
