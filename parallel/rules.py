"""From logical axes to mesh axes: the whole layout of a run in one table.

A rule names one logical axis and the mesh axes that split it (none: replicated). There is no catch-all: an axis
without a rule, a mesh axis used twice in one array, or a dimension that does not divide raises with the leaf's path.
"""

import math

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Rules = dict[str, tuple[str, ...]]

ZERO_STAGES = (0, 3)

_REPLICATED = dict.fromkeys(
  ('embed', 'heads', 'kv_heads', 'head_dim', 'mlp', 'vocab', 'layers', 'length', 'experts', 'rank', 'load'), ()
)
_PARAMETER_RULES = {0: _REPLICATED, 3: _REPLICATED | {'embed': ('fsdp',)}}
_ACTIVATION_RULES = {
  'batch': ('data', 'fsdp'),
  'length': (),
  'embed': (),
  'heads': (),
  'kv_heads': (),
  'head_dim': (),
  'mlp': (),
  'vocab': (),
}


def parameter_rules(zero_stage: int) -> Rules:
  """The rules for parameters and everything shaped like them (Rajbhandari et al. 2020, ZeRO, section 5).

  Raises:
    ValueError: the stage does not exist yet.
  """
  if zero_stage not in _PARAMETER_RULES:
    raise ValueError(
      f'zero_stage={zero_stage} does not exist; set zero_stage to one of {ZERO_STAGES}: 0 replicates '
      'parameters, 3 shards parameters and optimizer state over mesh.fsdp'
    )
  return _PARAMETER_RULES[zero_stage]


def parameter_spec(axes: tuple[str | None, ...], zero_stage: int) -> PartitionSpec:
  """The PartitionSpec of a parameter whose dimensions are named by `axes`. Raises ValueError as `parameter_rules`."""
  return _spec(axes, parameter_rules(zero_stage), 'a parameter')


def activation_spec(axes: tuple[str | None, ...]) -> PartitionSpec:
  """The PartitionSpec of an activation whose dimensions are named by `axes`; None is replicated."""
  return _spec(axes, _ACTIVATION_RULES, 'an activation')


def batch_shardings(batch_axes: dict[str, tuple[str, ...]], mesh: Mesh) -> dict[str, NamedSharding]:
  """The sharding of each array of a batch by its logical axes: rows over data and fsdp."""
  return {name: NamedSharding(mesh, activation_spec(axes)) for name, axes in batch_axes.items()}


def data_parallel_size(mesh: Mesh) -> int:
  """The number of shards a batch is split into."""
  return math.prod(mesh.shape[name] for name in _ACTIVATION_RULES['batch'])


def parameter_shardings(params, logical_axes, mesh: Mesh, zero_stage: int):
  """The sharding of every parameter.

  Args:
    params: tree of arrays or ShapeDtypeStructs.
    logical_axes: the same tree with a tuple of logical axis names at each leaf.
    mesh: the device mesh.
    zero_stage: 0 or 3.

  Returns:
    The same tree of NamedShardings.

  Raises:
    ValueError: a leaf has an axis without a rule, a collision, or a size that the mesh does not divide.
  """
  rules = parameter_rules(zero_stage)

  def sharding(path, leaf, axes):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    if len(axes) != len(leaf.shape):
      raise ValueError(f'{name}: {len(leaf.shape)} dimensions {leaf.shape} but {len(axes)} logical axes {axes}')
    spec = _spec(axes, rules, name)
    for size, axis in zip(leaf.shape, axes):
      parts = math.prod(mesh.shape[mesh_axis] for mesh_axis in rules[axis])
      if size % parts:
        raise ValueError(
          f'{name}: axis {axis!r} of size {size} does not divide over {rules[axis]} = {parts} devices; '
          'choose a size that divides, a smaller mesh.fsdp, or zero_stage=0'
        )
    return NamedSharding(mesh, spec)

  return jax.tree_util.tree_map_with_path(sharding, params, logical_axes)


def describe(params, shardings) -> str:
  """The resolved layout for printing, a line a parameter: path, shape, mesh axes of each dimension."""
  rows = [
    (jax.tree_util.keystr(path, simple=True, separator='/'), str(leaf.shape), ', '.join(map(str, sharding.spec)))
    for (path, leaf), sharding in zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(shardings))
  ]
  widths = [max(map(len, column)) for column in zip(*rows)]
  return '\n'.join(f'{path:<{widths[0]}}  {shape:<{widths[1]}}  {spec}'.rstrip() for path, shape, spec in rows)


def _spec(axes, rules: Rules, name: str) -> PartitionSpec:
  entries, used = [], set()
  for axis in axes:
    if axis is not None and axis not in rules:
      raise ValueError(f'{name}: no sharding rule for logical axis {axis!r}; rules exist for {sorted(rules)}')
    mesh_axes = rules[axis] if axis is not None else ()
    if used & set(mesh_axes):
      raise ValueError(f'{name}: mesh axes {sorted(used & set(mesh_axes))} would split two dimensions of {axes}')
    used |= set(mesh_axes)
    entries.append(mesh_axes or None)
  return PartitionSpec(*entries)


def state_shardings(state, params, shardings, mesh: Mesh):
  """The sharding of every array of a training state, by the parameter it belongs to.

  A leaf whose path ends with a parameter's path and that has its shape (the parameter itself, moments, averages) is
  sharded like it; everything else (counters, factored statistics) is replicated.

  Args:
    state: tree of arrays or ShapeDtypeStructs.
    params: tree of the parameters.
    shardings: their shardings, from `parameter_shardings`.
    mesh: the device mesh.
  """
  known = {
    path: (leaf.shape, sharding)
    for (path, leaf), sharding in zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(shardings))
  }
  replicated = NamedSharding(mesh, PartitionSpec())

  def sharding(path, leaf):
    for start in range(len(path)):
      if path[start:] in known:
        shape, found = known[path[start:]]
        return found if shape == leaf.shape else replicated
    return replicated

  return jax.tree_util.tree_map_with_path(sharding, state)
