"""The repeats of a segment on devices that hold them one after the other. B batch, L length, D embed."""

import jax

from parallel import axes as ax


def run(loop, params, x, context, keys, schedule):
  """Applies the repeats of a segment, cut into the stages of a pipeline.

  Args:
    loop: `loop(params, x, context, keys) -> (x, metrics, ...)` applies some of the repeats; its metrics are pytrees
      with a leading axis of these.
    params: the segment's, a leading axis of all repeats.
    x: [B, L, D], what flows through.
    context: pytree, the same for every layer.
    keys: PRNG keys, one a layer, or None.
    schedule: from `axes.schedule`.

  Returns:
    x after the last repeat, and the metrics of all with the leading axis of repeats.
  """
  keys = None if keys is None else keys.reshape(schedule.stages, -1)
  # What of the context belongs to the rows of text goes with them; all else, such as a bias by distance, has another
  # leading dimension, which is 1.
  is_of_rows = lambda leaf: leaf.ndim > 0 and len(leaf) == len(x)
  of_rows = jax.tree.map(lambda leaf: leaf if is_of_rows(leaf) else None, context)
  of_all = jax.tree.map(lambda leaf: None if is_of_rows(leaf) else leaf, context)

  def stage(params, x, of_rows, shared, number):
    of_all, keys = shared
    context = jax.tree.map(lambda own, all_: all_ if own is None else own, of_rows, of_all, is_leaf=lambda v: v is None)
    return loop(params, x, context, None if keys is None else keys[number])[:2]

  x, found = ax.through_stages(stage, params, x, of_rows, (of_all, keys))
  return x, jax.tree.map(lambda values: values.reshape(-1, *values.shape[2:]), found)
