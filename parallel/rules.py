"""From logical axes to mesh axes: the whole layout of a run in one table.

A rule names one logical axis and the mesh axes that split it (none: not split). There is no catch-all: an axis without
a rule, a mesh axis used twice in one array, or a dimension that does not divide raises with the leaf's path. Two rules
give way instead, and `describe` prints where they did: key heads and vocabularies that `tensor` does not divide are
whole on each of its devices.
"""

import dataclasses
import math

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

Rules = dict[str, tuple[str, ...]]

ZERO_STAGES = (0, 1, 2, 3)

# How parameters are split while they are used, and what belongs to them.
_PARAMETERS: Rules = {
  'layers': ('pipeline',),
  'experts': ('expert',),
  'vocab': ('tensor',),
  'heads': ('tensor',),
  'kv_heads': ('tensor',),
  'mlp': ('tensor',),
  'embed': (),
  'head_dim': (),
  'length': (),
  'rank': (),
  'scores': (),
  'load': (),
}
# What ZeRO splits further: `embed`, and where there is none the first of these that divides.
_ZERO_AXES = ('fsdp',)
_ZERO_ORDER = ('mlp', 'heads', 'kv_heads', 'vocab', 'head_dim', 'rank', 'length', 'experts', 'scores', 'load')

_ACTIVATIONS: Rules = {
  'batch': ('data', 'fsdp', 'expert'),
  'length': ('sequence',),
  'residual_length': ('sequence',),
  'embed': (),
  'heads': ('tensor',),
  'kv_heads': ('tensor',),
  'head_dim': (),
  'mlp': ('tensor',),
  'vocab': ('tensor',),
  'experts': ('expert',),
}
_SEQUENCE_PARALLEL = {'residual_length': ('sequence', 'tensor')}

_GIVE_WAY = ('kv_heads', 'vocab')


@dataclasses.dataclass(frozen=True)
class Layout:
  """Where the arrays of a run lie.

  Attributes:
    mesh: the device mesh.
    zero_stage: what is split over `fsdp` (Rajbhandari et al. 2020, ZeRO, section 5): from 1 the optimizer's state and
      moving averages, from 2 gradients too, at 3 parameters too.
    sequence_parallel: whether what norms, dropout and residual additions read is split along the length over `tensor`
      (Korthikanti et al. 2022, section 4.2.2).
  """

  mesh: Mesh | AbstractMesh
  zero_stage: int = 0
  sequence_parallel: bool = False

  def __post_init__(self):
    if self.zero_stage not in ZERO_STAGES:
      raise ValueError(
        f'zero_stage={self.zero_stage} does not exist; set zero_stage to one of {ZERO_STAGES}: 0 splits nothing over '
        'mesh.fsdp, 1 the optimizer state, 2 gradients too, 3 parameters too'
      )

  def activation_spec(self, axes: tuple, shape: tuple[int, ...] | None = None, name='an activation') -> PartitionSpec:
    """How an activation is split whose dimensions are named by `axes`, None for one that is not.

    Raises:
      ValueError: as `parameter_spec`.
    """
    rules = _ACTIVATIONS | (_SEQUENCE_PARALLEL if self.sequence_parallel else {})
    return _spec(axes, shape, rules, self.mesh, name)

  def parameter_spec(self, axes: tuple, shape: tuple[int, ...], name: str = 'a parameter') -> PartitionSpec:
    """How a parameter is stored.

    Args:
      axes: a logical axis for each dimension.
      shape: of the parameter.
      name: for errors.

    Raises:
      ValueError: an axis without a rule, a collision, or a size that the mesh does not divide.
    """
    return self.state_spec(axes, shape, name) if self.zero_stage >= 3 else self.used_spec(axes, shape, name)

  def gradient_spec(self, axes: tuple, shape: tuple[int, ...], name: str = 'a gradient') -> PartitionSpec:
    """How a gradient and its sum over microbatches are stored. Arguments and errors as `parameter_spec`."""
    return self.state_spec(axes, shape, name) if self.zero_stage >= 2 else self.used_spec(axes, shape, name)

  def state_spec(self, axes: tuple, shape: tuple[int, ...], name: str = 'a state') -> PartitionSpec:
    """How the optimizer's state of a parameter is stored. Arguments and errors as `parameter_spec`."""
    spec = self.used_spec(axes, shape, name)
    return spec if self.zero_stage == 0 else _zero(spec, axes, shape, self.mesh, name)

  def used_spec(self, axes: tuple, shape: tuple[int, ...], name: str = 'a parameter') -> PartitionSpec:
    """How a parameter is split while a layer uses it. Arguments and errors as `parameter_spec`."""
    return _spec(axes, shape, _PARAMETERS, self.mesh, name)

  def sharding(self, spec: PartitionSpec) -> NamedSharding:
    """The sharding of a spec over the mesh."""
    return NamedSharding(self.mesh, spec)

  def parts(self, axis: str) -> int:
    """How many parts activations are split into along a logical axis."""
    return math.prod(self.mesh.shape[name] for name in mesh_axes(self.activation_spec((axis,))[0]))

  @property
  def data_parallel_size(self) -> int:
    """The number of shards that the rows of a batch are split into."""
    return self.parts('batch')

  @property
  def length_shards(self) -> int:
    """What the length of rows must be a multiple of."""
    return self.parts('residual_length')


def mesh_axes(entry) -> tuple[str, ...]:
  """The mesh axes of one entry of a PartitionSpec."""
  return (entry,) if isinstance(entry, str) else tuple(entry or ())


def batch_shardings(batch_axes: dict[str, tuple[str, ...]], layout: Layout) -> dict[str, NamedSharding]:
  """The sharding of each array of a batch by its logical axes."""
  return {name: layout.sharding(layout.activation_spec(axes)) for name, axes in batch_axes.items()}


def parameter_shardings(params, logical_axes, layout: Layout):
  """The sharding of every parameter.

  Args:
    params: tree of arrays or ShapeDtypeStructs.
    logical_axes: the same tree with a tuple of logical axis names at each leaf.
    layout: of the run.

  Returns:
    The same tree of NamedShardings.

  Raises:
    ValueError: as `Layout.parameter_spec`, with the leaf's path.
  """
  return _shardings(params, logical_axes, layout, layout.parameter_spec)


def place_gradients(gradients, logical_axes, layout: Layout):
  """The gradients, traced, each pinned to where the layout stores it; arguments and errors as `parameter_shardings`."""
  if layout.mesh.size == 1:
    return gradients
  shardings = _shardings(gradients, logical_axes, layout, layout.gradient_spec)
  return jax.lax.with_sharding_constraint(gradients, shardings)


def _shardings(params, logical_axes, layout, spec_of):
  def sharding(path, leaf, axes):
    return layout.sharding(spec_of(axes, leaf.shape, _path(path)))

  return jax.tree_util.tree_map_with_path(sharding, params, logical_axes)


def state_shardings(state, params, logical_axes, layout: Layout):
  """The sharding of every array of a training state, by the parameter it belongs to.

  A leaf under `params` whose path ends with a parameter's path is that parameter. Another one that has a parameter's
  path and shape (moments, averages) is split as optimizer states are; everything else (counters, factored statistics)
  is whole on every device.

  Args:
    state: tree of arrays or ShapeDtypeStructs, with an attribute or key `params`.
    params: tree of the parameters.
    logical_axes: the same tree with a tuple of logical axis names at each leaf.
    layout: of the run.
  """
  leaves = jax.tree_util.tree_leaves_with_path(params)
  stored = jax.tree.leaves(parameter_shardings(params, logical_axes, layout))
  states = jax.tree.leaves(_shardings(params, logical_axes, layout, layout.state_spec))
  known = {path: (leaf.shape, *both) for (path, leaf), *both in zip(leaves, stored, states)}
  whole = layout.sharding(PartitionSpec())

  def sharding(path, leaf):
    for start in range(len(path)):
      if path[start:] in known:
        shape, of_parameter, of_state = known[path[start:]]
        if shape != leaf.shape:
          return whole
        return of_parameter if _path(path[:start]) == 'params' else of_state
    return whole

  return jax.tree_util.tree_map_with_path(sharding, state)


def describe(params, logical_axes, layout: Layout) -> str:
  """The resolved layout for printing, a line a parameter and one for all.

  A line has path, shape, the mesh axes larger than 1 that split each dimension, the bytes on a device, and in words
  what is not split though its rule says so.

  Args:
    params: tree of arrays or ShapeDtypeStructs.
    logical_axes: the same tree with a tuple of logical axis names at each leaf.
    layout: of the run.
  """
  rows, total = [], 0
  axes_of = dict(jax.tree_util.tree_leaves_with_path(logical_axes, is_leaf=lambda x: type(x) is tuple))
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    spec = layout.parameter_spec(axes_of[path], leaf.shape, _path(path))
    part = math.prod(layout.sharding(spec).shard_shape(leaf.shape)) * leaf.dtype.itemsize
    total += part
    split = (' '.join(name for name in mesh_axes(entry) if layout.mesh.shape[name] > 1) or '-' for entry in spec)
    rows.append((_path(path), str(leaf.shape), ', '.join(split), f'{part:,} B', _resolved(axes_of[path], leaf, layout)))
  widths = [max(map(len, column)) for column in zip(*rows)]
  lines = ['  '.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
  return '\n'.join([*lines, f'parameters on each device: {total:,} B'])


def _resolved(axes, leaf, layout) -> str:
  """What a parameter's rules could not do, in words."""
  said = []
  for axis, size in zip(axes, leaf.shape):
    parts = math.prod(layout.mesh.shape[name] for name in _PARAMETERS[axis])
    if size % parts:
      said.append(f'{axis} {size} does not divide over {parts}: whole')
  spec = layout.state_spec(axes, leaf.shape)
  groups = math.prod(layout.mesh.shape[name] for name in _ZERO_AXES)
  if layout.zero_stage and groups > 1 and not any(set(_ZERO_AXES) & set(mesh_axes(entry)) for entry in spec):
    said.append(f'no dimension divides over {groups}: ZeRO does not split it')
  return '; '.join(said)


def _path(path) -> str:
  return jax.tree_util.keystr(path, simple=True, separator='/')


def _spec(axes, shape, rules: Rules, mesh, name: str) -> PartitionSpec:
  if shape is not None and len(axes) != len(shape):
    raise ValueError(f'{name}: {len(shape)} dimensions {shape} but {len(axes)} logical axes {axes}')
  entries, used = [], set()
  for dimension, axis in enumerate(axes):
    if axis is not None and axis not in rules:
      raise ValueError(f'{name}: no sharding rule for logical axis {axis!r}; rules exist for {sorted(rules)}')
    names = rules[axis] if axis is not None else ()
    parts = math.prod(mesh.shape[mesh_axis] for mesh_axis in names)
    if shape is not None and shape[dimension] % parts:
      if axis not in _GIVE_WAY:
        raise ValueError(_uneven(name, axis, shape[dimension], names, parts))
      names = ()
    if used & set(names):
      raise ValueError(f'{name}: mesh axes {sorted(used & set(names))} would split two dimensions of {axes}')
    used |= set(names)
    entries.append(names or None)
  return PartitionSpec(*entries)


def _uneven(name, axis, size, names, parts) -> str:
  keys = ' times '.join(f'mesh.{mesh_axis}' for mesh_axis in names)
  return (
    f'{name}: axis {axis!r} of size {size} does not divide over {keys} = {parts} devices; choose a size that divides, '
    'or a smaller mesh'
  )


def _zero(spec, axes, shape, mesh, name) -> PartitionSpec:
  """The spec with one dimension split further; as it is where nothing divides."""
  parts = math.prod(mesh.shape[mesh_axis] for mesh_axis in _ZERO_AXES)
  if axes.count('embed') > 1 and parts > 1:
    raise ValueError(f'{name}: mesh axes {list(_ZERO_AXES)} would split two dimensions of {axes}')
  if 'embed' in axes and shape[axes.index('embed')] % parts:
    raise ValueError(_uneven(name, 'embed', shape[axes.index('embed')], _ZERO_AXES, parts))
  for axis in ('embed', *_ZERO_ORDER):
    if axis in axes:
      dimension = axes.index(axis)
      split = mesh_axes(spec[dimension])
      if shape[dimension] % (parts * math.prod(mesh.shape[mesh_axis] for mesh_axis in split)) == 0:
        return PartitionSpec(*spec[:dimension], (*split, *_ZERO_AXES), *spec[dimension + 1 :])
  return spec
