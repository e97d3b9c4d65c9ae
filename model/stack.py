"""Runs a stack of equal layers whose parameters are stacked on a leading axis: scanned or unrolled, with remat."""

import jax
from jax import ad_checkpoint

LAYER_LOOPS = ('auto', 'scan', 'unroll')
REMATS = ('none', 'full', 'selective')


def unstack(tree) -> tuple:
  """A tuple of trees, one a layer, of a tree whose arrays are stacked on the leading axis.

  Split by one operation an array, whose gradient is one concatenation; indexing layer by layer would build a
  zero-padded gradient of the whole stack for each layer.
  """
  leaves, structure = jax.tree.flatten(tree)
  return tuple(jax.tree.unflatten(structure, layer) for layer in zip(*map(jax.lax.unstack, leaves)))


def run(layer, params, x, keys, *, layer_loop: str, remat: str):
  """Applies `layer(params_i, x, key_i) -> x` for every i in turn.

  Args:
    layer: pure function of one layer.
    params: tree stacked on a leading layers axis.
    x: what flows through.
    keys: PRNG keys [layers], or None.
    layer_loop: 'scan', 'unroll', or 'auto': unroll on CPU, where a scan halves the speed, scan elsewhere, where
      compile time must not grow with depth.
    remat: 'none'; 'full' recomputes each layer in the backward pass; 'selective' keeps the outputs of
      matmuls without batch dimensions and recomputes the rest (Korthikanti et al. 2022, section 5).

  Returns:
    x after the last layer.
  """
  unrolled = layer_loop == 'unroll' or (layer_loop == 'auto' and jax.default_backend() == 'cpu')
  layer = _remat(layer, remat, unrolled)
  if not unrolled:
    return jax.lax.scan(lambda x, slices: (layer(slices[0], x, slices[1]), None), x, (params, keys))[0]
  for i, layer_params in enumerate(unstack(params)):
    x = layer(layer_params, _formed_once(x), None if keys is None else keys[i])
  return x


@jax.custom_vjp
def _formed_once(x):
  """x, whose gradient XLA must form as an array: left alone it fuses sums of several layers into each consumer."""
  return x


_formed_once.defvjp(lambda x: (x, None), lambda _, gradient: (jax.lax.optimization_barrier(gradient),))


def run_cached(layer, params, x, caches: tuple):
  """Applies `layer(params_i, x, cache_i) -> (x, cache_i)` for every i in turn, always unrolled.

  A scan would copy the whole cache at every token. `params` is stacked, or already a tuple of trees, one a layer, so
  that a decode loop slices the weights once and not at every token.

  Returns:
    x after the last layer, and the tuple of caches.
  """
  layers = params if isinstance(params, tuple) else unstack(params)
  updated = []
  for layer_params, cache in zip(layers, caches, strict=True):
    x, cache = layer(layer_params, x, cache)
    updated.append(cache)
  return x, tuple(updated)


def _remat(layer, remat, unrolled):
  if remat == 'none':
    return layer
  policies = ad_checkpoint.checkpoint_policies
  policy = policies.nothing_saveable if remat == 'full' else policies.dots_with_no_batch_dims_saveable
  return jax.checkpoint(layer, policy=policy, prevent_cse=unrolled)
