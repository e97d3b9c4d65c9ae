"""What the TPU kernels share: a walk over the visible blocks of [keys, queries], and the logits of one block.

Everything is kept keys-first: logits are [keys, queries], so a query's maximum, sum, lse and gradient terms are rows
of lanes, sums over keys run over sublanes, which costs the vector unit least, and no product needs a transposed left
operand. Only ids of keys and blocks of the bias are turned in the kernel.

Shapes in names: B batch, H query heads, N kv heads, T queries, S keys, D head_dim; inside a kernel those of one block.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.block_map import HIDDEN, PARTLY, WHOLLY, block_map, index_map, visible_blocks
from pallas_kernels.dropout import keep_mask
from pallas_kernels.spec import AttentionSpec, Shapes
from pallas_kernels.tpu.tuning import Blocks

_KIND_BITS = 2  # of a table's entry, which is block << 2 | kind; kind HIDDEN: nothing to do


@dataclasses.dataclass(frozen=True)
class Call:
  """What the kernels of one attention call have in common; `spec` has its scale set."""

  spec: AttentionSpec
  shapes: Shapes
  blocks: Blocks
  interpret: object

  @property
  def q_blocks(self) -> int:
    return pl.cdiv(self.shapes.q_len, self.blocks.q)

  @property
  def k_blocks(self) -> int:
    return pl.cdiv(self.shapes.kv_len, self.blocks.k)

  @property
  def groups(self) -> int:
    return self.shapes.heads // self.shapes.kv_heads

  def table_bytes(self) -> int:
    """Returns what the largest table of a kernel's steps takes of the scalar memory."""
    kinds = index_map(self.spec, self.shapes, self.blocks.q, self.blocks.k)
    slots = [kinds.shape[by] * _longest(kinds.swapaxes(1, by)) for by in (1, 2)]
    if self.spec.bias is not None:
      slots.append(kinds.size)
    alike = self.spec.q_order is None and self.spec.q_segment_ids is None
    return 4 * max(slots) * (1 if alike else self.shapes.batch)

  def kinds(self):
    """Returns the map of blocks, [batch or 1, q_blocks, k_blocks]."""
    return block_map(self.spec, self.shapes, self.blocks.q, self.blocks.k)

  def pad(self, x, *, q=None, k=None, value=0):
    """Pads axis `q` (queries) and axis `k` (keys) of x to whole blocks."""
    widths = [(0, 0)] * x.ndim
    if q is not None:
      widths[q] = (0, self.q_blocks * self.blocks.q - self.shapes.q_len)
    if k is not None:
      widths[k] = (0, self.k_blocks * self.blocks.k - self.shapes.kv_len)
    return jnp.pad(x, widths, constant_values=value)

  def queries_last(self, x):
    """Returns x [B, T, H, D] as [B, H, D, T], padded."""
    return self.pad(jnp.transpose(x, (0, 2, 3, 1)), q=3)

  def keys_last(self, x):
    """Returns x [B, S, N, D] as [B, N, D, S], padded."""
    return self.pad(jnp.transpose(x, (0, 2, 3, 1)), k=3)

  def keys_first(self, x):
    """Returns x [B, S, N, D] as [B, N, S, D], padded."""
    return self.pad(jnp.transpose(x, (0, 2, 1, 3)), k=2)

  def arrays(self):
    """The spec's arrays that are cut into blocks, padded, ids as rows [B, 1, T] and [B, 1, S]."""
    arrays = {}
    for name in ('q_segment_ids', 'kv_segment_ids', 'q_order', 'kv_order'):
      x = getattr(self.spec, name)
      if x is not None:
        axis = {'q': 'q', 'kv': 'k'}[name.split('_')[0]]
        arrays[name] = self.pad(x.astype(jnp.int32)[:, None], **{axis: 2})
    if self.spec.bias is not None:
      bias = self.spec.bias if self.spec.bias.dtype == jnp.bfloat16 else self.spec.bias.astype(jnp.float32)
      arrays['bias'] = self.pad(bias, q=2 if bias.shape[2] > 1 else None, k=3)
    return arrays

  def numbers(self):
    """The spec's arrays that are read one number at a time."""
    names = ('alibi_slopes', 'sinks')
    numbers = {name: getattr(self.spec, name) for name in names if getattr(self.spec, name) is not None}
    numbers = {name: x.astype(jnp.float32) for name, x in numbers.items()}
    if self.spec.dropout_rate:
      seed = jnp.asarray(self.spec.dropout_seed).astype(jnp.uint32)
      numbers['dropout_seed'] = lax.bitcast_convert_type(seed, jnp.int32)[None]
      if self.spec.dropout_offset is not None:
        numbers['dropout_offset'] = jnp.asarray(self.spec.dropout_offset).astype(jnp.int32)
    return numbers


@dataclasses.dataclass(frozen=True)
class Walk:
  """The steps of one kernel.

  Attributes:
    table: int32 [batch or 1, rows, slots]; a row is a block of queries or of keys, its slots hold blocks of the other
      and how far they are visible.
    by_keys: whether rows are blocks of keys.
    grid: numbers of steps.
    inner: how many of the last axes of the grid add to one block of the result.
    place: from the grid's indices to batch, query head, row and slot.
  """

  table: jax.Array | np.ndarray
  by_keys: bool
  grid: tuple[int, ...]
  inner: int
  place: Callable

  def at(self, steps, table):
    """Returns batch, query head, block of queries, block of keys, kind; `table` is flat."""
    batch, head, row, slot = self.place(*steps)
    rows, slots = self.table.shape[1:]
    entry = table[((batch if self.table.shape[0] > 1 else 0) * rows + row) * slots + slot]
    block, kind = entry >> _KIND_BITS, entry & (1 << _KIND_BITS) - 1
    return (batch, head, block, row, kind) if self.by_keys else (batch, head, row, block, kind)


def walk_queries(call: Call) -> Walk:
  """For each query head and block of queries, its visible keys."""
  table = _visible(call, by_keys=False)
  grid = (call.shapes.batch, call.shapes.heads, *table.shape[1:])
  return Walk(table, False, grid, 1, lambda b, h, i, n: (b, h, i, n))


def walk_keys(call: Call) -> Walk:
  """For each kv head and block of keys, the visible queries of all its query heads."""
  table = _visible(call, by_keys=True)
  grid = (call.shapes.batch, call.shapes.kv_heads, table.shape[1], call.groups, table.shape[2])
  return Walk(table, True, grid, 2, lambda b, n, j, g, slot: (b, n * call.groups + g, j, slot))


def walk_bias(call: Call) -> Walk:
  """For each block of the bias, hidden ones too, the batch rows, heads and queries that share it."""
  shape = call.spec.bias.shape
  if shape[2] == 1:
    table = _visible(call, by_keys=True)
  else:
    table = np.arange(call.q_blocks, dtype=np.int32) << _KIND_BITS | call.kinds().swapaxes(1, 2)
  sizes = zip(shape[:3], (call.shapes.batch, call.shapes.heads, table.shape[2]), strict=True)
  (b, more_b), (h, more_h), (i, more_i) = ((1, full) if size == 1 else (full, 1) for size, full in sizes)
  place = lambda b, h, j, i, more_b, more_h, more_i: (b + more_b, h + more_h, j, i + more_i)
  return Walk(table, True, (b, h, call.k_blocks, i, more_b, more_h, more_i), 3, place)


def _longest(kinds):
  return max(1, int((kinds > HIDDEN).sum(-1).max()))


def _visible(call, by_keys):
  kinds, by_index = call.kinds(), index_map(call.spec, call.shapes, call.blocks.q, call.blocks.k)
  if by_keys:
    kinds, by_index = kinds.swapaxes(1, 2), by_index.swapaxes(1, 2)
  longest = _longest(by_index)
  blocks, counts = visible_blocks(kinds, longest)
  xp = np if isinstance(kinds, np.ndarray) else jnp
  kinds = xp.take_along_axis(kinds, blocks, axis=-1)
  return blocks << _KIND_BITS | xp.where(np.arange(longest) < counts[..., None], kinds, HIDDEN)


def run(call: Call, walk: Walk, start, step, finish, inputs: dict, outputs: dict, scratch: dict) -> dict:
  """Calls a kernel and returns its outputs by name.

  Args:
    call: sizes and masks; the spec's arrays are added to the inputs.
    walk: its steps.
    start: start(tile, scratch), before the first step on a block of the result.
    step: step(tile, scratch), on a visible block.
    finish: finish(tile, outputs, scratch), after the last step on a block of the result.
    inputs: arrays by name, each cut into blocks as `_block_spec` knows that name.
    outputs: shape and dtype by name, cut alike.
    scratch: shapes of float32 memory by name.
  """
  inputs, numbers = inputs | call.arrays(), call.numbers()
  varying = jax.typeof(inputs['q']).manual_axis_type

  def kernel(table, numbers, inputs, outputs, scratch):
    steps = [pl.program_id(axis) for axis in range(len(walk.grid))]
    batch, head, i, j, kind = walk.at(steps, table)
    tile = Tile(call, inputs | numbers, batch, head, i * call.blocks.q, j * call.blocks.k, masked=False)
    inner, sizes = steps[-walk.inner :], walk.grid[-walk.inner :]
    pl.when(_all(step == 0 for step in inner))(lambda: start(tile, scratch))
    pl.when(kind == WHOLLY)(lambda: step(tile, scratch))
    pl.when(kind == PARTLY)(lambda: step(dataclasses.replace(tile, masked=True), scratch))
    last = _all(step == size - 1 for step, size in zip(inner, sizes, strict=True))
    pl.when(last)(lambda: finish(tile, outputs, scratch))

  specs = lambda arrays: {name: _block_spec(call, walk, name, x.shape) for name, x in arrays.items()}
  outer = len(walk.grid) - walk.inner
  outputs = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, manual_axis_type=varying) for name, x in outputs.items()}
  return pl.pallas_call(
    kernel,
    out_shape=outputs,
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=2,
      grid=walk.grid,
      in_specs=[specs(inputs)],
      out_specs=specs(outputs),
      scratch_shapes=[{name: pltpu.VMEM(shape, jnp.float32) for name, shape in scratch.items()}],
    ),
    compiler_params=pltpu.CompilerParams(dimension_semantics=('parallel',) * outer + ('arbitrary',) * walk.inner),
    interpret=call.interpret,
  )(walk.table.reshape(-1), numbers, inputs)


def _all(conditions):
  return functools.reduce(jnp.logical_and, conditions)


def _block_spec(call, walk, name, shape):
  """How the array of that name is cut; leading axes of one element are left out inside the kernel."""
  q, k, d = call.blocks.q, call.blocks.k, call.shapes.head_dim
  block, index = {
    'queries': ((None, None, d, q), lambda b, h, i, j: (b, h, 0, i)),
    'rows': ((None, None, 1, q), lambda b, h, i, j: (b, h, 0, i)),
    'keys': ((None, None, k, d), lambda b, h, i, j: (b, h // call.groups, j, 0)),
    'keys_last': ((None, None, d, k), lambda b, h, i, j: (b, h // call.groups, 0, j)),
    'q_ids': ((None, 1, q), lambda b, h, i, j: (b, 0, i)),
    'kv_ids': ((None, 1, k), lambda b, h, i, j: (b, 0, j)),
    'bias': (
      (None, None, min(shape[-2], q), k),
      lambda b, h, i, j: (*(place if size > 1 else 0 for place, size in zip((b, h, i), shape, strict=False)), j),
    ),
  }[_CUTS[name]]
  return pl.BlockSpec(block, lambda *steps: index(*walk.at(steps[:-2], steps[-2])[:4]))


_CUTS = {
  'q': 'queries',
  'out': 'queries',
  'd_out': 'queries',
  'd_q': 'queries',
  'lse': 'rows',
  'd_row': 'rows',
  'd_slope': 'rows',
  'k': 'keys',
  'v': 'keys',
  'd_k': 'keys',
  'd_v': 'keys',
  'k_DxS': 'keys_last',
  'v_DxS': 'keys_last',
  'q_segment_ids': 'q_ids',
  'q_order': 'q_ids',
  'kv_segment_ids': 'kv_ids',
  'kv_order': 'kv_ids',
  'bias': 'bias',
  'd_bias': 'bias',
}


@dataclasses.dataclass(frozen=True)
class Tile:
  """One block of logits inside a kernel; `refs` are blocks and numbers by name. Arrays broadcast to [S, T]."""

  call: Call
  refs: dict
  batch: jax.Array
  head: jax.Array
  q_start: jax.Array
  k_start: jax.Array
  masked: bool  # whether some keys may be hidden from some queries

  def __getitem__(self, name):
    return self.refs[name][...]

  def scores(self):
    """Returns the logits as soft-cap leaves them, and with slopes, bias and mask, [S, T]."""
    spec = self.call.spec
    capped_SxT = spec.scale * dot(self['k'], self['q'])
    if spec.softcap is not None:
      capped_SxT = spec.softcap * jnp.tanh(capped_SxT * (1 / spec.softcap))
    logits_SxT = capped_SxT
    if 'alibi_slopes' in self.refs:
      logits_SxT -= self.number('alibi_slopes') * self.distance().astype(jnp.float32)
    if 'bias' in self.refs:
      logits_SxT += self['bias'].astype(jnp.float32).T
    return capped_SxT, jnp.where(self._visible(), logits_SxT, -jnp.inf) if self.masked else logits_SxT

  def number(self, name):
    """Returns this head's number."""
    return self.refs[name][self.head]

  def distance(self):
    """Returns how far query and key lie apart."""
    return jnp.abs(self._offset())

  def keep(self, x):
    """Returns x with dropped places zeroed; whoever calls scales the others up."""
    if not self.call.spec.dropout_rate:
      return x
    offset = [self.refs['dropout_offset'][n] for n in range(4)] if 'dropout_offset' in self.refs else None
    place = (self.batch, self.head, self._q_place(), self._k_index())
    return jnp.where(keep_mask(self.refs['dropout_seed'][0], self.call.spec.dropout_rate, offset, *place), x, 0)

  def _q_place(self):
    return self.q_start + lax.broadcasted_iota(jnp.int32, (1, self.call.blocks.q), 1)

  def _q_index(self):
    return self._q_place() + (self.call.shapes.kv_len - self.call.shapes.q_len)

  def _k_index(self):
    return self.k_start + lax.broadcasted_iota(jnp.int32, (self.call.blocks.k, 1), 0)

  def _offset(self):
    if 'q_order' in self.refs:
      return self['q_order'] - self['kv_order'].T
    return self._q_index() - self._k_index()

  def _visible(self):
    spec = self.call.spec
    visible = self._k_index() <= (self._q_index() if spec.causal else self.call.shapes.kv_len - 1)
    if 'q_order' in self.refs:
      visible &= self._offset() >= 0
    if spec.window is not None:
      visible &= self.distance() < spec.window
    if 'q_segment_ids' in self.refs:
      q_segment, k_segment = self['q_segment_ids'], self['kv_segment_ids'].T
      visible &= (q_segment == k_segment) & (q_segment != 0)
    return visible


def dot(a, b, contract_b=0):
  """Matrix product over a's last axis, accumulated in float32, of float32 operands in full precision."""
  precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else lax.Precision.DEFAULT
  return lax.dot_general(
    a, b, (((1,), (contract_b,)), ((), ())), precision=precision, preferred_element_type=jnp.float32
  )
