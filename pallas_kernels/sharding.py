"""Loops inside `jax.shard_map`, where an array's type says over which mesh axes it differs."""

import jax
from jax import lax


def vary_alike(tree, *others):
  """Returns the tree with every array typed as differing over each mesh axis that any array of any argument does.

  Loops need it for their carry: zeros differ over no axis, what is added to them does. Outside of `jax.shard_map`
  it does nothing.
  """
  axes = frozenset().union(*(_axes(x) for x in jax.tree.leaves((tree, others))))

  def vary(x):
    missing = axes - _axes(x)
    return lax.pcast(x, tuple(missing), to='varying') if missing else x

  return jax.tree.map(vary, tree)


def _axes(x):
  return jax.typeof(x).manual_axis_type.varying
