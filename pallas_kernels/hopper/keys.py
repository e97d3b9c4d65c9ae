"""The gradients of keys and values on Hopper: a warpgroup owns 64 keys of a key head and visits blocks of queries.

The logits are [keys, queries] here, so that probabilities and their gradients, in the registers where they were
computed, are operands of the next products as they are. The query heads that share the key head are visited one after
the other and are summed in the accumulators.

Fused, the gradient of the queries comes along, two products fewer than with a kernel of its own: the two warpgroups
share the gradients of their scores, and in turn one of them multiplies both with the keys and has TMA add the block to
global memory, as in FlashAttention-2 and -3 (arXiv:2307.08691, arXiv:2407.08608).
"""

import functools
import types

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.hopper.kernel import ROWS, Call, Visits, add_product, free, products, registers, transforms
from pallas_kernels.hopper.tile import Tile, scalars
from pallas_kernels.hopper.tuning import Keys

_WARPGROUPS = 2  # that compute


def gradient(q, k, v, d_out, rows: dict, arrays: dict, ranges, call: Call, tuning: Keys):
  """Returns the gradients of k and v, and of q, float32 like q, if `tuning.fused`, or else None.

  Args:
    q, d_out: [batch, padded q_len, heads, head_dim].
    k, v: [batch, padded kv_len, kv_heads, head_dim].
    rows: 'lse' in base 2, +inf where a query sees nothing, and 'd_row', the sum of d_out * out less the gradient of the
      lse: float32 [batch, heads, queries in whole blocks of 64].
    arrays: the spec's arrays, as `attention` lays them out, but a bias of each query [.., keys, queries].
    ranges: int32 [batch or 1, k_tiles, 5], from `visible_ranges` of the map transposed.
    call: what is static.
    tuning: sizes and stages.
  """
  shapes, k_tiles = call.shapes, ranges.shape[1]
  kernel = functools.partial(
    call.kernel,
    body=functools.partial(_kernel, call=call, tuning=tuning),
    barriers=False,
    num_threads=_WARPGROUPS + 1,
    grid=(shapes.kv_heads, k_tiles, shapes.batch),
    grid_names=('head', 'tile', 'batch'),
    scratch_types=_scratch(arrays, call, tuning, q.dtype),
  )
  operands, out = (q, k, v, d_out, rows, arrays, ranges), [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (k, v)]
  if not tuning.fused:
    return *kernel('attention_d_keys', out_type=out)(*operands), None
  d_q = jax.ShapeDtypeStruct((shapes.batch, shapes.heads, rows['lse'].shape[2], shapes.head_dim), jnp.float32)
  if call.simulated:  # the interpreter adds nothing to memory, so each tile of keys gives a part of its own
    d_q = jax.ShapeDtypeStruct((k_tiles, *d_q.shape), d_q.dtype)
    d_k, d_v, parts = kernel('attention_gradients', out_type=[*out, d_q])(*operands)
    d_q = _sum_visited(parts, ranges)
  else:
    onto = [jnp.empty(x.shape, x.dtype) for x in out] + [jnp.zeros(d_q.shape, d_q.dtype)]  # only d_q is added to
    d_k, d_v, d_q = kernel('attention_gradients', onto=onto)(*operands)
  return d_k, d_v, jnp.swapaxes(d_q, 1, 2)


def _sum_visited(parts, ranges):
  """Sums [k_tiles, batch, heads, queries, head_dim] over the tiles that visit a query."""
  place = jnp.arange(parts.shape[3]) // ROWS
  visited = (ranges[..., 0, None] <= place) & (place < ranges[..., 3, None])  # [batch or 1, k_tiles, queries]
  return jnp.sum(jnp.where(jnp.swapaxes(visited, 0, 1)[:, :, None, :, None], parts, 0), axis=0)


def _scratch(arrays, call, tuning, dtype):
  stages, owners, tokens, head_dim = tuning.stages, tuning.k_size // ROWS, len(call.tokens), call.shapes.head_dim
  vector = lambda number: plgpu.SMEM((number, ROWS), jnp.float32)
  block = lambda number: plgpu.SMEM((number, ROWS, head_dim), dtype, transforms=transforms(head_dim, dtype))
  barriers = lambda arrivals, number=stages: plgpu.Barrier(num_arrivals=arrivals, num_barriers=number)
  scratch = {
    'k': block(owners),
    'v': block(owners),
    'q': block(stages),
    'd_out': block(stages),
    'lse': vector(stages),
    'd_row': vector(stages),
    'k_loaded': barriers(2 * owners + bool(tokens), 1),
    'ended': barriers(_WARPGROUPS, 1),
    'freed': barriers(_WARPGROUPS),
  }
  copies = 4 + bool(tokens)
  if tokens:
    scratch['kv_tokens'] = plgpu.SMEM((tokens, tuning.k_size), jnp.int32)
    scratch['q_tokens'] = plgpu.SMEM((stages, tokens, ROWS), jnp.int32)
  if 'bias' in arrays:
    whole, tile = arrays['bias'].shape[2] > 1, transforms(ROWS, jnp.float32)
    scratch['bias'] = (
      plgpu.SMEM((stages, owners, ROWS, ROWS), jnp.float32, transforms=tile)
      if whole
      else plgpu.SMEM((stages, owners, ROWS), jnp.float32)
    )
    copies += owners
  if tuning.fused:
    scratch |= {
      'd_scores': plgpu.SMEM((2, owners, ROWS, ROWS), dtype, transforms=transforms(head_dim, dtype)),
      'd_q': plgpu.SMEM((ROWS, head_dim), jnp.float32, transforms=transforms(head_dim, jnp.float32)),
      'scored': barriers(_WARPGROUPS, 2),
      'multiplied': barriers(1, 2),
      'copied': barriers(1, 2),
    }
  return scratch | {'loaded': barriers(copies)}


def _kernel(
  q_ref, k_ref, v_ref, d_out_ref, rows, arrays, ranges, d_k_ref, d_v_ref, d_q_ref=None, *, call, tuning, **scratch
):
  smem = types.SimpleNamespace(**scratch)
  head, batch, tile, warpgroup = (lax.axis_index(name) for name in ('head', 'batch', 'tile', 'warpgroup'))
  visits, k_start = Visits(ranges, batch, tile), tile * tuning.k_size
  loading, computing = registers(_WARPGROUPS)

  @pl.when(warpgroup == _WARPGROUPS)
  def _():
    plgpu.set_max_registers(loading, action='decrease')
    _load(q_ref, k_ref, v_ref, d_out_ref, rows, arrays, smem, call, tuning, batch, head, k_start, visits)

  @pl.when(warpgroup < _WARPGROUPS)
  def _():
    plgpu.set_max_registers(computing, action='increase')
    plgpu.barrier_wait(smem.k_loaded.at[0])
    owner = warpgroup if tuning.k_size == _WARPGROUPS * ROWS else 0
    queries = None
    if tuning.fused:
      d_q = d_q_ref.at[tile, batch] if call.simulated else d_q_ref.at[batch]
      queries = _QueryGradients(d_q, smem, call, warpgroup, visits)
    run = functools.partial(_accumulate, arrays, smem, call, tuning, batch, head, k_start, visits, owner, queries)
    write = functools.partial(_write, smem, {'k': d_k_ref, 'v': d_v_ref}, batch, head, k_start, owner)

    def write_after_both(gradients):
      plgpu.barrier_arrive(smem.ended.at[0])  # the other one may still read what this one is about to overwrite
      plgpu.barrier_wait(smem.ended.at[0])
      write(gradients)

    if tuning.k_size == _WARPGROUPS * ROWS:
      write(run(('k', 'v')))
    else:
      for n, name in enumerate('kv'):
        pl.when(warpgroup == n)(lambda name=name: write_after_both(run((name,))))


def _load(q_ref, k_ref, v_ref, d_out_ref, rows, arrays, smem, call, tuning, batch, kv_head, k_start, visits):
  groups, owners = call.shapes.heads // call.shapes.kv_heads, tuning.k_size // ROWS
  places = [pl.ds(k_start + n * ROWS, ROWS) for n in range(owners)]
  for n, place in enumerate(places):
    plgpu.copy_gmem_to_smem(k_ref.at[batch, place, kv_head], smem.k.at[n], smem.k_loaded.at[0])
    plgpu.copy_gmem_to_smem(v_ref.at[batch, place, kv_head], smem.v.at[n], smem.k_loaded.at[0])
  if call.tokens:
    keys = pl.ds(k_start, tuning.k_size)
    plgpu.copy_gmem_to_smem(arrays['kv_tokens'].at[:, batch, keys], smem.kv_tokens, smem.k_loaded.at[0])

  @pl.loop(0, groups * visits.count)
  def _(step):
    head, slot = kv_head * groups + lax.div(step, visits.count), lax.rem(step, tuning.stages)
    queries = pl.ds(visits.block(lax.rem(step, visits.count)) * ROWS, ROWS)
    pl.when(step >= tuning.stages)(lambda: plgpu.barrier_wait(smem.freed.at[slot]))
    ready = smem.loaded.at[slot]
    plgpu.copy_gmem_to_smem(q_ref.at[batch, queries, head], smem.q.at[slot], ready)
    plgpu.copy_gmem_to_smem(d_out_ref.at[batch, queries, head], smem.d_out.at[slot], ready)
    for name in ('lse', 'd_row'):
      plgpu.copy_gmem_to_smem(rows[name].at[batch, head, queries], getattr(smem, name).at[slot], ready)
    if call.tokens:
      plgpu.copy_gmem_to_smem(arrays['q_tokens'].at[:, batch, queries], smem.q_tokens.at[slot], ready)
    if 'bias' in arrays:
      bias = arrays['bias']
      bias = bias.at[batch if bias.shape[0] > 1 else 0, head if bias.shape[1] > 1 else 0]
      for n, place in enumerate(places):
        part = bias.at[place, queries] if bias.shape[0] > 1 else bias.at[0, place]
        plgpu.copy_gmem_to_smem(part, smem.bias.at[slot, n], ready)

  @pl.loop(0, jnp.minimum(groups * visits.count, tuning.stages))
  def _(slot):
    plgpu.barrier_wait(smem.freed.at[slot])


def _write(smem, outputs, batch, kv_head, k_start, owner, gradients):
  place = pl.ds(k_start + owner * ROWS, ROWS)
  plgpu.commit_smem()  # products that other warps started may still read what is overwritten here
  for name, gradient in gradients.items():
    mine = getattr(smem, name).at[owner]
    mine[...] = gradient.astype(mine.dtype)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(mine, outputs[name].at[batch, place, kv_head])
  plgpu.wait_smem_to_gmem(0, wait_read_only=True)


def _accumulate(arrays, smem, call, tuning, batch, kv_head, k_start, visits, owner, queries, wanted):
  """Returns the gradients of one owner's keys ('k'), its values ('v') or both, float32 [ROWS, head_dim]."""
  groups, dtype, shape = call.shapes.heads // call.shapes.kv_heads, smem.q.dtype, (ROWS, ROWS)

  def step(group, n, carry, masked):
    head, slot, mine = kv_head * groups + group, carry['slot'], owner + visits.zero
    place = group * visits.count + n
    tile = Tile(
      call,
      shape,
      1,
      batch,
      head,
      visits.block(n, masked) * ROWS,
      k_start + mine * ROWS,
      q_tokens=smem.q_tokens.at[slot] if call.tokens else None,
      k_tokens=smem.kv_tokens.at[:, pl.ds(mine * ROWS, ROWS)] if call.tokens else None,
      bias=smem.bias.at[slot, mine] if 'bias' in arrays else None,
      **scalars(arrays, head),
    )
    plgpu.barrier_wait(smem.loaded.at[slot])

    zeros = jnp.zeros(shape, jnp.float32)
    add = functools.partial(add_product, simulated=call.simulated)

    def softmax(scores):
      logits, slope = tile.logits(scores, masked)
      return slope, jnp.exp2(logits * tile.factor - tile.of_queries(smem.lse.at[slot][...]))

    def start(sums):
      scores, d_p = sums
      scores.add(smem.k.at[mine], smem.q.at[slot], transpose_b=True)
      d_p.add(smem.v.at[mine], smem.d_out.at[slot], transpose_b=True)
      return softmax(scores.value(in_flight=1))

    if tuning.ahead:
      results = zeros if call.spec.softcap else (), zeros
      (_, d_p), (slope, p) = products(start, (zeros, zeros), results, simulated=call.simulated)
    else:
      slope, p = softmax(add(zeros, smem.k.at[mine], smem.q.at[slot], transpose_b=True))
    if queries is not None:
      queries.hand_over(place)
    if 'k' in wanted and not tuning.ahead:
      d_p = add(zeros, smem.v.at[mine], smem.d_out.at[slot], transpose_b=True)

    def multiply(sums):
      if 'v' in wanted:
        sums['v'].add(tile.drop(p).astype(dtype), smem.d_out.at[slot])
      if 'k' in wanted:  # while the product above runs
        d_logits = p * (tile.drop(d_p) - tile.of_queries(smem.d_row.at[slot][...]))
        d_scores = tile.through_softcap(d_logits, slope).astype(dtype)
        sums['k'].add(d_scores, smem.q.at[slot])
        if queries is not None:
          queries.offer(d_scores, place)
      return ()

    sums, _ = products(multiply, {name: carry[name] for name in wanted}, simulated=call.simulated)
    carry = sums | {'slot': lax.rem(slot + 1, tuning.stages)}
    free(smem.freed.at[slot], read=False)  # what loads have read went into products that have ended
    if queries is not None:
      queries.add(place, head, visits.block(n, masked) * ROWS)
    return carry

  carry = {name: jnp.zeros((ROWS, call.shapes.head_dim), jnp.float32) for name in wanted} | {'slot': jnp.int32(0)}
  carry = lax.fori_loop(0, groups, lambda group, carry: visits.run(functools.partial(step, group), carry), carry)
  if queries is not None:
    queries.end(groups * visits.count)
  if 'k' in wanted:
    carry['k'] = carry['k'] * call.spec.scale
  return {name: carry[name] for name in wanted}


class _QueryGradients:
  """Adds what each block contributes to the gradients of the queries; the warpgroups take turns, block by block.

  Attributes:
    d_q: float32 ref [heads, queries, head_dim] in global memory.
    smem: what the kernel has in shared memory.
    call: what is static.
    warpgroup: which one this is.
    visits: the blocks of queries.
  """

  def __init__(self, d_q, smem, call, warpgroup, visits):
    self._d_q, self._smem, self._call, self._warpgroup, self._visits = d_q, smem, call, warpgroup, visits

  def offer(self, d_scores, place):
    """Takes the gradient of this warpgroup's scores [keys, queries] in the block that is visited as number `place`."""
    smem, turn = self._smem, lax.rem(place, 2)
    pl.when(place >= 2)(lambda: plgpu.barrier_wait(smem.multiplied.at[turn]))
    smem.d_scores.at[turn, self._warpgroup][...] = d_scores
    plgpu.commit_smem()
    plgpu.barrier_arrive(smem.scored.at[turn])

  def add(self, place, head, q_start):
    """Adds the block that both warpgroups have offered, if it is this one's turn."""
    smem, turn = self._smem, lax.rem(place, 2)

    @pl.when(turn == self._warpgroup)
    def _():
      plgpu.barrier_wait(smem.scored.at[turn])

      def add_all_keys(d_q):
        for owner in range(_WARPGROUPS):
          owner = owner + self._visits.zero
          d_q.add(smem.d_scores.at[turn, owner], smem.k.at[owner], transpose_a=True)
        return ()

      zeros = jnp.zeros((ROWS, self._call.shapes.head_dim), jnp.float32)
      d_q, _ = products(add_all_keys, zeros, simulated=self._call.simulated)
      plgpu.barrier_arrive(smem.multiplied.at[turn])
      pl.when(place > 0)(lambda: plgpu.barrier_wait(smem.copied.at[self._warpgroup]))
      smem.d_q[...] = d_q * self._call.spec.scale
      plgpu.commit_smem()
      plgpu.copy_smem_to_gmem(
        smem.d_q, self._d_q.at[head, pl.ds(q_start, ROWS)], reduction_op=None if self._call.simulated else 'add'
      )

  def hand_over(self, place):
    """Lets the other warpgroup write its sum once that of the block before `place`, if it was this one's, is copied."""

    @pl.when((place > 0) & (lax.rem(place, 2) != self._warpgroup))
    def _():
      plgpu.wait_smem_to_gmem(0, wait_read_only=True)
      plgpu.barrier_arrive(self._smem.copied.at[1 - self._warpgroup])

  def end(self, places):
    """Waits until keys are no longer read; `places`: how many blocks there were."""
    pl.loop(0, jnp.minimum(places, 2))(lambda turn: plgpu.barrier_wait(self._smem.multiplied.at[turn]))
