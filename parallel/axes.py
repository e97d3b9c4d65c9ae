"""Logical axis names, and the activations' link from them to the mesh.

A model names the axes of its parameters and activations logically and never a mesh axis. `constrain` is the one call a
model makes of its own accord: inside `activation_sharding` it pins an activation to the mesh, elsewhere it does
nothing, so that a model runs without a mesh. `per_shard` is for what the compiler cannot split over devices itself.
"""

import contextlib
import contextvars

import jax
from jax.sharding import NamedSharding

BATCH = 'batch'
LENGTH = 'length'
EMBED = 'embed'
HEADS = 'heads'
KV_HEADS = 'kv_heads'
HEAD_DIM = 'head_dim'
MLP = 'mlp'
VOCAB = 'vocab'
LAYERS = 'layers'

_active = contextvars.ContextVar('activation_sharding', default=None)


@contextlib.contextmanager
def activation_sharding(mesh: jax.sharding.Mesh, spec_of):
  """While tracing inside this context, `constrain` pins activations to `mesh`.

  Args:
    mesh: the device mesh.
    spec_of: function from a tuple of logical axis names to a PartitionSpec.
  """
  token = _active.set((mesh, spec_of))
  try:
    yield
  finally:
    _active.reset(token)


def constrain(x: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
  """Pins activation `x`, whose dimensions are named by `axes`, to the active mesh; `x` itself without one."""
  active = _active.get()
  if active is None:
    return x
  mesh, spec_of = active
  return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec_of(axes)))


def per_shard(function, arguments: tuple, in_axes: tuple, out_axes: tuple[str | None, ...]):
  """Calls `function(shard, *arguments)` on each device's part of the arguments.

  Args:
    function: takes the number of the part, int32, and its arrays; returns one array.
    arguments: trees of arrays.
    in_axes: the same trees with a tuple of logical axis names for each array.
    out_axes: logical axis names of the result.

  Returns:
    The parts' results as one array; without an active mesh of several devices, `function(0, *arguments)`.
  """
  active = _active.get()
  if active is None or active[0].size == 1:
    return function(0, *arguments)
  mesh, spec_of = active
  is_names = lambda x: type(x) is tuple and all(name is None or isinstance(name, str) for name in x)
  in_specs, out_spec = jax.tree.map(spec_of, in_axes, is_leaf=is_names), spec_of(out_axes)
  split = tuple(name for names in out_spec for name in ((names,) if isinstance(names, str) else names or ()))

  def run(*parts):
    return function(jax.lax.axis_index(split) if split else 0, *parts)

  return jax.shard_map(run, mesh=mesh, in_specs=in_specs, out_specs=out_spec)(*arguments)
