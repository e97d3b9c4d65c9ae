"""What loops over parts of arrays must know of meshes."""

import jax
from jax import lax


def on_one_device() -> bool:
  """Whether the arrays that are traced here lie on one device.

  Otherwise a loop over an axis of them may make XLA gather what is sharded along that axis.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return jax.device_count() == 1
  return mesh.size == 1 or all(kind == jax.sharding.AxisType.Manual for kind in mesh.axis_types)


def vary_alike(tree, *others):
  """Returns the tree with every array typed as differing over each mesh axis that any array of any argument does.

  Inside `jax.shard_map` loops need it for their carry: zeros differ over no axis, what is added to them does. Outside
  it does nothing.
  """
  axes = frozenset().union(*(_axes(x) for x in jax.tree.leaves((tree, others))))

  def vary(x):
    missing = axes - _axes(x)
    return lax.pcast(x, tuple(missing), to='varying') if missing else x

  return jax.tree.map(vary, tree)


def _axes(x):
  return jax.typeof(x).manual_axis_type.varying
