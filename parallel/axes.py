"""Logical axis names, and a model's link from them to the mesh.

A model names the axes of its parameters and activations logically and never a mesh axis. Of its own accord it makes two
calls: `constrain` pins an activation to the mesh, and `on_each_device` runs what the compiler cannot split itself, or
would split badly, on each device's part. Both work inside `activation_sharding`; elsewhere, and on a mesh of one
device, `constrain` does nothing and `on_each_device` is the function itself, so that a model runs without a mesh.
"""

import contextlib
import contextvars
import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from parallel import exchange
from parallel.head_exchange import AllToAll
from parallel.lookup import lookup as lookup_on_device
from parallel.ring import Ring
from parallel.rules import Layout, mesh_axes

BATCH = 'batch'
LENGTH = 'length'  # of what attention and feed-forward read
RESIDUAL_LENGTH = 'residual_length'  # of the residual stream: what norms, dropout and additions read
EMBED = 'embed'
HEADS = 'heads'
KV_HEADS = 'kv_heads'
HEAD_DIM = 'head_dim'
MLP = 'mlp'
VOCAB = 'vocab'
LAYERS = 'layers'
EXPERTS = 'experts'
SCORES = 'scores'  # experts as a router sees them: all of them at once
RANK = 'rank'  # of the narrow vectors of latent attention
LOAD = 'load'  # of numbers that follow the load of experts and not a gradient

ATTENTION_EXCHANGES = {'ring': Ring, 'all_to_all': AllToAll}

Axes = tuple[str | None, ...]


@dataclasses.dataclass(frozen=True)
class Stored:
  """Logical axes of an array that is a parameter: split as parameters are stored and not as activations are."""

  axes: Axes


@dataclasses.dataclass(frozen=True)
class Used:
  """Logical axes of an array that is a parameter, gathered for its use: without what ZeRO splits."""

  axes: Axes


@dataclasses.dataclass(frozen=True)
class _Active:
  layout: Layout
  on_device: bool = False  # inside a function that runs on each device's part

  @property
  def mesh(self):
    return self.layout.mesh

  def spec(self, axes: Axes | Stored | Used | None, shape=None) -> PartitionSpec:
    """How the mesh splits an array, without mesh axes of size 1, over which a reduction would still be a copy."""
    if isinstance(axes, Stored):
      spec = self.layout.parameter_spec(axes.axes, shape)
    elif isinstance(axes, Used):
      spec = self.layout.used_spec(axes.axes, shape)
    else:
      spec = self.layout.activation_spec(axes or (), None if axes is None else shape)
    large = (tuple(name for name in mesh_axes(entry) if self.mesh.shape[name] > 1) for entry in spec)
    return PartitionSpec(*(names or None for names in large))


_active = contextvars.ContextVar('activation_sharding', default=None)


def activation_sharding(layout: Layout):
  """Context inside which functions are traced that run over the mesh of a layout."""
  return _activated(_Active(layout))


@contextlib.contextmanager
def _activated(active):
  token = _active.set(active)
  try:
    yield
  finally:
    _active.reset(token)


def constrain(x: jax.Array, axes: Axes) -> jax.Array:
  """Pins activation `x`, whose dimensions are named by `axes`, to the active mesh; `x` itself without one."""
  active = _active.get()
  if active is None or active.on_device or active.mesh.size == 1:
    return x
  return jax.lax.with_sharding_constraint(x, NamedSharding(active.mesh, active.spec(axes, x.shape)))


def on_each_device(function, in_axes: tuple, out_axes):
  """Returns `function` such that every device of the active mesh runs it on its part of the arguments.

  Args:
    function: pure function of pytrees of arrays; inside it `offset`, `split_over` and `sum_over` tell of the part.
    in_axes: for each argument a tuple of logical axis names, one a dimension, `Stored` or `Used` of one, None for an
      array that every device gets whole, or a pytree of these that is a prefix of the argument.
    out_axes: the same for what the function returns; what no axis splits must be equal on all devices.

  Returns:
    A function of whole arrays; `function` itself without a mesh of several devices.

  Raises:
    ValueError: when called with an array that the devices do not divide evenly.
  """
  active = _active.get()
  if active is None or active.on_device or active.mesh.size == 1:
    return function

  def on_whole(*arguments):
    in_specs = tuple(_specs(active, axes, argument) for axes, argument in zip(in_axes, arguments, strict=True))

    def on_part(*parts):
      with _activated(dataclasses.replace(active, on_device=True)):
        return function(*parts)

    out_specs = jax.tree.map(active.spec, out_axes, is_leaf=_is_axes)
    return jax.shard_map(on_part, mesh=active.mesh, in_specs=in_specs, out_specs=out_specs)(*arguments)

  return on_whole


def _is_axes(x) -> bool:
  return x is None or isinstance(x, Stored | Used) or type(x) is tuple and all(isinstance(y, str | None) for y in x)


def _specs(active, axes, argument):
  """The spec of every array of an argument, whose logical axes are a prefix of it."""
  of_array = lambda names: lambda array: active.spec(names, array.shape)
  return jax.tree.map(lambda names, arrays: jax.tree.map(of_array(names), arrays), axes, argument, is_leaf=_is_axes)


def split_over(axis: str) -> tuple[str, ...]:
  """Inside `on_each_device`: the mesh axes that split an activation along a logical axis; elsewhere ()."""
  return _mesh_axes((axis,))


def stored_over(axes: Axes, shape: tuple[int, ...]) -> tuple[tuple[str, ...], ...]:
  """For each dimension of a parameter the mesh axes that split it as it is stored; inside `on_each_device` () for all.

  Args:
    axes: logical axes of its dimensions.
    shape: of the whole parameter.
  """
  active = _active.get()
  if active is None or active.on_device:
    return ((),) * len(axes)
  return tuple(map(mesh_axes, active.spec(Stored(axes), shape)))


def parts(axis: str) -> int:
  """How many parts the active mesh splits activations into along a logical axis; 1 without a mesh."""
  active = _active.get()
  return 1 if active is None else active.layout.parts(axis)


def attention_exchange(kind: str):
  """Inside `on_each_device`: how attention goes over the devices that split the length, None where none do.

  Args:
    kind: one of `ATTENTION_EXCHANGES`.

  Returns:
    A function for `pallas_kernels.attention_across`, see `Ring` and `AllToAll`.
  """
  names = split_over(LENGTH)
  return ATTENTION_EXCHANGES[kind](names) if names else None


def offset(axis: str, local_size: int) -> jax.Array:
  """Inside `on_each_device`: the global index, int32, of this device's first element along a logical axis of an
  activation, of which it holds `local_size` elements; elsewhere 0."""
  names = split_over(axis)
  return jax.lax.axis_index(names) * local_size if names else jnp.int32(0)


def sum_over(axis: str | Axes, x: jax.Array) -> jax.Array:
  """Inside `on_each_device`: the sum of x over the devices that split a logical axis, or some; elsewhere x itself."""
  names = _mesh_axes((axis,) if isinstance(axis, str) else axis)
  return jax.lax.psum(x, names) if names else x


def pass_equal(axis: str, experts, rows_SxD: jax.Array, num_experts: int) -> jax.Array:
  """Inside `on_each_device`: `exchange.equal` over the devices that split a logical axis."""
  return exchange.equal(experts, rows_SxD, num_experts, split_over(axis))


def pass_ragged(axis: str, experts, rows_SxD: jax.Array, sizes_E: jax.Array, most_sent: int) -> jax.Array:
  """Inside `on_each_device`: `exchange.ragged` over the devices that split a logical axis."""
  return exchange.ragged(experts, rows_SxD, sizes_E, most_sent, split_over(axis))


def pass_gathered(axis: str, experts, arrays: tuple) -> jax.Array:
  """Inside `on_each_device`: `exchange.gathered` over the devices that split a logical axis."""
  return exchange.gathered(experts, arrays, split_over(axis))


def lookup(table: jax.Array, axes: Axes, ids_BxL: jax.Array) -> jax.Array:
  """Rows of a table, a parameter with the logical `axes` of rows and embed, by their numbers [batch, length].

  Returns:
    The residual stream [batch, residual length, embed].
  """
  rows, width = stored_over(axes, table.shape)
  of_ids = LENGTH if rows else RESIDUAL_LENGTH

  def on_device(table, ids_BxL):
    scatter_length = bool(rows) and split_over(RESIDUAL_LENGTH) != split_over(LENGTH)
    return lookup_on_device(table, ids_BxL, rows=rows, width=width, scatter_length=scatter_length)

  in_axes = Stored(axes), (BATCH, of_ids)
  return on_each_device(on_device, in_axes, (BATCH, RESIDUAL_LENGTH, EMBED))(table, ids_BxL)


def _mesh_axes(axes):
  active = _active.get()
  if active is None or not active.on_device:
    return ()
  return tuple(name for names in active.spec(axes) for name in mesh_axes(names))
