"""Logical axis names, and a model's link from them to the mesh.

A model names the axes of its parameters and activations logically and never a mesh axis. Of its own accord it makes two
calls: `constrain` pins an activation to the mesh, and `on_each_device` runs what the compiler cannot split itself, or
would split badly, on each device's part. Both work inside `activation_sharding`; elsewhere, and on a mesh of one
device, `constrain` does nothing and `on_each_device` is the function itself, so that a model runs without a mesh.
"""

import contextlib
import contextvars
import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

BATCH = 'batch'
LENGTH = 'length'
EMBED = 'embed'
HEADS = 'heads'
KV_HEADS = 'kv_heads'
HEAD_DIM = 'head_dim'
MLP = 'mlp'
VOCAB = 'vocab'
LAYERS = 'layers'
EXPERTS = 'experts'
RANK = 'rank'  # of the narrow vectors of latent attention
LOAD = 'load'  # of numbers that follow the load of experts and not a gradient

Axes = tuple[str | None, ...]


@dataclasses.dataclass(frozen=True)
class Stored:
  """Logical axes of an array that is a parameter: split as parameters are stored and not as activations are."""

  axes: Axes


@dataclasses.dataclass(frozen=True)
class _Layout:
  mesh: Mesh
  activation_spec: Callable[[Axes], PartitionSpec]
  parameter_spec: Callable[[Axes], PartitionSpec]
  on_device: bool = False  # inside a function that runs on each device's part

  def spec(self, axes: Axes | Stored | None) -> PartitionSpec:
    """How the mesh splits an array, without mesh axes of size 1, over which a reduction would still be a copy."""
    spec = self.parameter_spec(axes.axes) if isinstance(axes, Stored) else self.activation_spec(axes or ())
    large = (tuple(name for name in _names(entry) if self.mesh.shape[name] > 1) for entry in spec)
    return PartitionSpec(*(names or None for names in large))


_active = contextvars.ContextVar('activation_sharding', default=None)


def activation_sharding(mesh: Mesh, activation_spec, parameter_spec=lambda axes: PartitionSpec()):
  """Context inside which functions are traced that run over `mesh`.

  Args:
    mesh: the device mesh.
    activation_spec: function from a tuple of logical axis names to the PartitionSpec of an activation.
    parameter_spec: the same for a parameter; by default parameters are whole on every device.
  """
  return _layout(_Layout(mesh, activation_spec, parameter_spec))


@contextlib.contextmanager
def _layout(layout):
  token = _active.set(layout)
  try:
    yield
  finally:
    _active.reset(token)


def constrain(x: jax.Array, axes: Axes) -> jax.Array:
  """Pins activation `x`, whose dimensions are named by `axes`, to the active mesh; `x` itself without one."""
  layout = _active.get()
  if layout is None or layout.on_device:
    return x
  return jax.lax.with_sharding_constraint(x, NamedSharding(layout.mesh, layout.spec(axes)))


def on_each_device(function, in_axes: tuple, out_axes):
  """Returns `function` such that every device of the active mesh runs it on its part of the arguments.

  Args:
    function: pure function of pytrees of arrays; inside it `offset`, `split_over`, `stored_over` and `sum_over` tell of
      the part.
    in_axes: for each argument a tuple of logical axis names, one a dimension, `Stored` of one, None for an array that
      every device gets whole, or a pytree of these that is a prefix of the argument.
    out_axes: the same for what the function returns; what no axis splits must be equal on all devices.

  Returns:
    A function of whole arrays; `function` itself without a mesh of several devices.

  Raises:
    ValueError: when called with an array that the devices do not divide evenly.
  """
  layout = _active.get()
  if layout is None or layout.on_device or layout.mesh.size == 1:
    return function
  specs = functools.partial(jax.tree.map, layout.spec, is_leaf=_is_axes)
  in_specs = tuple(map(specs, in_axes))

  def on_part(*parts):
    with _layout(dataclasses.replace(layout, on_device=True)):
      return function(*parts)

  def on_whole(*arguments):
    for axes, spec, argument in zip(in_axes, in_specs, arguments, strict=True):
      jax.tree.map(functools.partial(_check_even, layout.mesh), axes, spec, argument, is_leaf=_is_axes)
    return jax.shard_map(on_part, mesh=layout.mesh, in_specs=in_specs, out_specs=specs(out_axes))(*arguments)

  return on_whole


def _is_axes(x) -> bool:
  return x is None or isinstance(x, Stored) or type(x) is tuple and all(isinstance(y, str | None) for y in x)


def _check_even(mesh, axes, spec, arrays):
  for array in jax.tree.leaves(arrays):
    for dimension, names in enumerate(spec):
      parts = math.prod(mesh.shape[name] for name in _names(names))
      if array.shape[dimension] % parts:
        axis = (axes.axes if isinstance(axes, Stored) else axes)[dimension]
        raise ValueError(
          f'axis {axis!r} of size {array.shape[dimension]} in an array of shape {array.shape} does not '
          f'divide over {parts} devices; choose a size that divides, or a smaller mesh'
        )


def split_over(axis: str) -> tuple[str, ...]:
  """Inside `on_each_device`: the mesh axes that split an activation along a logical axis; elsewhere ()."""
  return _mesh_axes((axis,))


def stored_over(axis: str) -> tuple[str, ...]:
  """Inside `on_each_device`: the mesh axes that split a stored parameter along a logical axis; elsewhere ()."""
  return _mesh_axes(Stored((axis,)))


def offset(axis: str, local_size: int) -> jax.Array:
  """Inside `on_each_device`: the global index, int32, of this device's first element along a logical axis of an
  activation, of which it holds `local_size` elements; elsewhere 0."""
  names = split_over(axis)
  return jax.lax.axis_index(names) * local_size if names else jnp.int32(0)


def sum_over(axis: str, x: jax.Array) -> jax.Array:
  """Inside `on_each_device`: the sum of x over the devices that split a logical axis; elsewhere x itself."""
  names = split_over(axis)
  return jax.lax.psum(x, names) if names else x


def _mesh_axes(axes):
  layout = _active.get()
  if layout is None or not layout.on_device:
    return ()
  return tuple(name for names in layout.spec(axes) for name in _names(names))


def _names(entry) -> tuple[str, ...]:
  """The mesh axes of one entry of a PartitionSpec."""
  return (entry,) if isinstance(entry, str) else tuple(entry or ())
