"""What the Hopper kernels are made of: matrix products in flight, a kernel's call, the blocks it visits, their loading.

Where `simulated`, a branch replaces what the interpreter of Mosaic GPU lacks; everything else runs as it is.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.block_map import HIDDEN, WHOLLY
from pallas_kernels.spec import AttentionSpec, Shapes

ROWS = 64  # of a product of one warpgroup
_COMPILER = plgpu.CompilerParams(approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Warpgroup)


def registers(warpgroups: int) -> tuple[int, int]:
  """Returns registers of a thread that loads and of one that computes: all that `warpgroups` and the loading one have.

  A kernel starts with as many for each thread as the multiprocessor has for all; who asks for more than the others
  give up waits forever.
  """
  started = 65536 // (128 * (warpgroups + 1)) // 8 * 8  # instructions name multiples of 8
  together = started * (warpgroups + 1)
  computing = min(240, (together - 24) // warpgroups // 8 * 8)
  return min(32, together - warpgroups * computing), computing


def transforms(columns: int, dtype) -> tuple:
  """Layout of a row-major tile in shared memory that TMA writes and wgmma reads: the widest swizzle that fits."""
  for swizzle in (128, 64, 32):
    elements = swizzle // jnp.dtype(dtype).itemsize
    if columns % elements == 0:
      return plgpu.TilingTransform((8, elements)), plgpu.SwizzleTransform(swizzle)
  raise ValueError(f'rows of {columns} {dtype} do not divide into swizzled tiles')


class _Accumulator:
  """A sum of products in the registers of a warpgroup."""

  def __init__(self, ref):
    self._ref = ref

  def add(self, a, b, *, transpose_a: bool = False, transpose_b: bool = False):
    """Starts adding a @ b: a is in registers or, as where it is transposed, in shared memory, b in shared memory."""
    a, b = (plgpu.transpose_ref(x, (1, 0)) if turn else x for x, turn in ((a, transpose_a), (b, transpose_b)))
    plgpu.wgmma(self._ref, a, b)

  def value(self, in_flight: int):
    """The sum, once at most that many products, the ones started last, are still running."""
    return plgpu.wgmma_accumulator_load(self._ref, wait_n=in_flight)


class _SimulatedAccumulator:
  def __init__(self, value):
    self.sum = value

  def add(self, a, b, *, transpose_a: bool = False, transpose_b: bool = False):
    a, b = a[...], b[...]
    plgpu.commit_smem()  # the tensor cores read through the proxy of TMA, so that its next write needs no fence
    self.sum += jnp.dot(a.T if transpose_a else a, b.T if transpose_b else b, preferred_element_type=jnp.float32)

  def value(self, in_flight: int):
    del in_flight
    return self.sum


def products(body, sums, results=(), *, simulated: bool):
  """Runs `body(accumulators)`, whose products have all ended on return.

  Args:
    body: takes an accumulator for each of `sums`, starts products, and returns arrays.
    sums: initial values, float32 arrays, in any pytree.
    results: arrays of the shapes and dtypes that `body` returns.
    simulated: whether the interpreter runs this.

  Returns:
    The sums, and what `body` returned.
  """
  if simulated:
    accumulators = jax.tree.map(_SimulatedAccumulator, sums)
    found = body(accumulators)
    return jax.tree.map(lambda x: x.sum, accumulators), found

  def run(refs):
    accumulators, places = refs
    found = body(jax.tree.map(_Accumulator, accumulators))
    found = lax.optimization_barrier(found) if jax.tree.leaves(found) else found
    jax.tree.map(lambda ref, x: ref.__setitem__(..., x), places, found)

  return pl.run_state(run)((jax.tree.map(plgpu.ACC.init, sums), results))


def add_product(total, a, b, *, transpose_b: bool = False, simulated: bool):
  """Returns total + a @ b."""

  def body(total):
    total.add(a, b, transpose_b=transpose_b)
    return ()

  return products(body, total, simulated=simulated)[0]


def visible_ranges(kinds):
  """Returns what a kernel visits for each block of rows, from a `block_map`, int32 [batch or 1, rows, 5].

  They are (start, whole_start, whole_end, end, 0): blocks in [whole_start, whole_end) need no mask, the others of
  [start, end) may. There is at least one block, wholly hidden where nothing is visible, so that every row is written.
  """
  xp, blocks = np if isinstance(kinds, np.ndarray) else jnp, kinds.shape[-1]
  places = xp.arange(blocks)
  first = lambda condition: xp.where(condition, places, blocks).min(-1)
  start = xp.minimum(first(kinds != HIDDEN), blocks - 1)
  end = xp.maximum(xp.where(kinds != HIDDEN, places + 1, 0).max(-1), start + 1)
  whole_start = first(kinds == WHOLLY)
  whole_end = first((kinds != WHOLLY) & (places >= whole_start[..., None]))
  found = whole_start < blocks
  ranges = [start, xp.where(found, whole_start, start), xp.where(found, whole_end, start), end, 0 * start]
  return xp.stack(ranges, axis=-1).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class Call:
  """What is static in a call.

  Attributes:
    shapes: sizes before padding.
    spec: the static fields of the spec, with `scale` resolved; no arrays.
    tokens: which integers each query and key brings, in the order of their arrays: 'segment_ids', 'order'.
    interpret: as `Device.interpret`.
  """

  shapes: Shapes
  spec: AttentionSpec
  tokens: tuple[str, ...]
  interpret: Any = False

  @property
  def simulated(self) -> bool:
    return bool(self.interpret)

  def kernel(self, name, body, *, scratch_types, out_type=(), onto=None, barriers=True, **mesh):
    """Returns the kernel of a body that takes refs of operands and outputs, and scratch memory by name.

    Args:
      name: what profiles show.
      body: what every warpgroup runs.
      scratch_types: what `body` gets by name.
      out_type: of the outputs, which start as anything; or instead
      onto: arrays, the outputs' initial values, for kernels that add to them; not where simulated.
      barriers: whether the compiler guards each store to shared memory and each copy to it by barriers. They are needed
        where a warpgroup writes what its own loads have read.
      **mesh: as for `plgpu.kernel`.
    """
    body.__name__ = name
    compiler = dataclasses.replace(_COMPILER, unsafe_no_auto_barriers=not barriers)
    if onto is None:
      interpret = {'interpret': self.interpret} if self.simulated else {}
      return plgpu.kernel(
        body,
        thread_name='warpgroup',
        compiler_params=compiler,
        scratch_types=scratch_types,
        out_type=out_type,
        **interpret,
        **mesh,
      )

    def in_scratch(*refs):
      pl.run_scoped(functools.partial(body, *refs), collective_axes='warpgroup', **scratch_types)

    on_refs = pl.kernel(
      in_scratch, mesh=plgpu.Mesh(thread_name='warpgroup', **mesh), compiler_params=compiler, name=name
    )

    # plgpu.kernel takes refs too, but not in jax 0.10.
    @jax.custom_batching.sequential_vmap
    def run(*operands):
      def add(outputs):
        on_refs(*operands, *outputs)

      return pl.run_state(add)(onto)

    return run


class Visits:
  """The order in which a kernel visits the blocks of one row of `visible_ranges`: those that may need a mask first.

  The ranges are read again wherever they are needed: registers are scarcer than scalar loads.
  """

  def __init__(self, ranges, batch, row):
    self._range = lambda n: ranges[batch if ranges.shape[0] > 1 else 0, row, n]

  @property
  def zero(self):
    """0, from memory: what it is added to is no invariant of a loop, to be kept in registers with all its parts."""
    return self._range(4)

  @property
  def count(self):
    return self._range(3) - self._range(0)

  @property
  def _masked(self):
    return self.count - (self._range(2) - self._range(1))

  def block(self, n, masked: bool | None = None):
    """The block that is visited as the n-th; `masked`: whether that is known to be one that may need a mask."""
    start, whole_start, whole_end = (self._range(n) for n in range(3))
    first = jnp.where(n < whole_start - start, start + n, whole_end + (n - (whole_start - start)))
    whole = whole_start + (n - self._masked)
    return jnp.where(n < self._masked, first, whole) if masked is None else first if masked else whole

  def run(self, step, carry, first=0):
    """Returns the carry after `carry = step(n, carry, masked)` for every n from `first` on."""
    masked = jnp.maximum(self._masked, first)
    carry = lax.fori_loop(0, masked - first, lambda n, carry: step(first + n, carry, True), carry)
    masked = jnp.maximum(self._masked, first)
    return lax.fori_loop(0, self.count - masked, lambda n, carry: step(masked + n, carry, False), carry)


def scratch_of_keys(arrays: dict, call: Call, stages: int, groups: int, k_size: int):
  """Returns shared memory for what comes with a block of keys and with the queries of each warpgroup, and the number
  of copies that fill the former."""
  scratch, copies = {}, 0
  if call.tokens:
    scratch['q_tokens'] = plgpu.SMEM((groups, len(call.tokens), ROWS), jnp.int32)
    scratch['kv_tokens'] = plgpu.SMEM((stages, len(call.tokens), k_size), jnp.int32)
    copies += 1
  if 'bias' in arrays and arrays['bias'].shape[2] == 1:
    scratch['bias'] = plgpu.SMEM((stages, k_size), jnp.float32)
    copies += 1
  elif 'bias' in arrays:
    tile = transforms(k_size, jnp.float32)
    scratch['bias'] = plgpu.SMEM((stages, groups, ROWS, k_size), jnp.float32, transforms=tile)
    copies += groups
  return scratch, copies


def load_keys(k_ref, v_ref, arrays, smem, call, batch, head, q_start, visits):
  """What the loading warpgroup does where the others visit blocks of keys: fills the slots of k and v in turn."""
  kv_head = lax.div(head, call.shapes.heads // call.shapes.kv_heads)
  (stages, k_size, _), v_stages = smem.k.shape, smem.v.shape[0]

  @pl.loop(0, visits.count)
  def _(step):
    keys = pl.ds(visits.block(step) * k_size, k_size)
    slot, v_slot = lax.rem(step, stages), lax.rem(step, v_stages)
    pl.when(step >= stages)(lambda: plgpu.barrier_wait(smem.k_freed.at[slot]))
    ready = smem.k_loaded.at[slot]
    plgpu.copy_gmem_to_smem(k_ref.at[batch, keys, kv_head], smem.k.at[slot], ready)
    _load_with_keys(arrays, smem, call, slot, ready, batch, head, q_start, keys)
    pl.when(step >= v_stages)(lambda: plgpu.barrier_wait(smem.v_freed.at[v_slot]))
    plgpu.copy_gmem_to_smem(v_ref.at[batch, keys, kv_head], smem.v.at[v_slot], smem.v_loaded.at[v_slot])

  for freed, number in ((smem.k_freed, stages), (smem.v_freed, v_stages)):
    pl.loop(0, jnp.minimum(visits.count, number))(lambda slot, freed=freed: plgpu.barrier_wait(freed.at[slot]))


def _load_with_keys(arrays, smem, call, slot, ready, batch, head, q_start, keys):
  """Starts the copies that `scratch_of_keys` counts, for one block of keys."""
  if call.tokens:
    plgpu.copy_gmem_to_smem(arrays['kv_tokens'].at[:, batch, keys], smem.kv_tokens.at[slot], ready)
  if 'bias' not in arrays:
    return
  bias = arrays['bias']
  bias = bias.at[batch if bias.shape[0] > 1 else 0, head if bias.shape[1] > 1 else 0]
  if bias.shape[0] == 1:
    plgpu.copy_gmem_to_smem(bias.at[0, keys], smem.bias.at[slot], ready)
  else:
    for n in range(smem.bias.shape[1]):
      rows = pl.ds(q_start + n * ROWS, ROWS)
      plgpu.copy_gmem_to_smem(bias.at[rows, keys], smem.bias.at[slot, n], ready)


def free(barrier, read: bool):
  """Lets the loading warpgroup fill a slot again; `read`: whether loads, not only products, may yet be reading it."""
  if read:
    plgpu.commit_smem()  # TMA writes through another proxy than loads read through
  plgpu.barrier_arrive(barrier)
