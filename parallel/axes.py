"""Logical axis names, and the activations' link from them to the mesh.

A model names the axes of its parameters and activations logically and never a mesh axis. `constrain` is the one call a
model makes of its own accord: inside `activation_sharding` it pins an activation to the mesh, elsewhere it does
nothing, so that a model runs without a mesh. `active_mesh` and `spec_of` are for what the compiler cannot split itself.
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


def active_mesh() -> jax.sharding.Mesh | None:
  """The mesh that activations are pinned to, where it has several devices."""
  active = _active.get()
  return None if active is None or active[0].size == 1 else active[0]


def spec_of(axes: tuple[str | None, ...]) -> jax.sharding.PartitionSpec:
  """How the active mesh splits an activation whose dimensions are named by `axes`."""
  return _active.get()[1](axes)
