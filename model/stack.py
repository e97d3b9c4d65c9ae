"""A stack of layers whose parameters are stacked over repeats: scanned or unrolled, with remat.

A stack is a list of segments, a segment a short pattern of unlike blocks repeated: local and global attention in turn,
dense layers before expert layers, and what is left over. A layer is `layer(x, context, key, cache) -> (x, cache,
metrics)`.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from model import metrics as metrics_lib
from model import stages
from model.remat import KEEP_ALL, Remat
from pallas_kernels.device import current
from parallel import axes as ax

LAYER_LOOPS = ('auto', 'scan', 'unroll')


@dataclasses.dataclass(frozen=True)
class Segment:
  """Blocks that differ, one after the other, and all of them again.

  Attributes:
    pattern: what tells the blocks apart, hashable; handed to the stack's `create`.
    repeats: how often the pattern occurs.
  """

  pattern: tuple
  repeats: int

  @property
  def num_layers(self) -> int:
    return len(self.pattern) * self.repeats

  def reduced(self) -> 'Segment':
    """The same layers with the shortest pattern that gives them."""
    size = len(self.pattern)
    for period in range(1, size + 1):
      if size % period == 0 and self.pattern[:period] * (size // period) == self.pattern:
        return Segment(self.pattern[:period], self.repeats * (size // period))
    return self


@dataclasses.dataclass(frozen=True, eq=False)
class Stack:
  """Pure functions of the parameters of a list of segments.

  The first segment's parameters stand under `layers`, those of further ones under `layers_1`, ...; each is the tree of
  its block, or, where the pattern has several, of `block_0`, `block_1`, ...; every leaf has a leading axis of repeats.

  Attributes:
    segments: at least one.
    create: `create(scope, spec, rngs=...)` makes the nnx module of a block.
  """

  segments: tuple[Segment, ...]
  create: Callable

  @property
  def num_layers(self) -> int:
    return sum(segment.num_layers for segment in self.segments)

  @property
  def blocks(self) -> dict[str, int]:
    """How many layers there are of each block of a pattern, by the path of its parameters."""
    named = zip(self.names, self.segments)
    return {scope: segment.repeats for name, segment in named for scope, _ in _blocks(name, segment)}

  @property
  def names(self) -> tuple[str, ...]:
    """The parameters' keys, one a segment."""
    return tuple(f'layers_{i}' if i else 'layers' for i in range(len(self.segments)))

  def init(self, key) -> dict:
    """Fresh parameters; each layer's follow from a key of its own."""
    params, keys = {}, jax.random.split(key, self.num_layers)
    for name, segment in zip(self.names, self.segments):
      here, keys = keys[: segment.num_layers], keys[segment.num_layers :]
      here = here.reshape(segment.repeats, len(segment.pattern))
      params[name] = _join(
        [
          jax.vmap(functools.partial(self._init_block, scope, spec))(here[:, j])
          for j, (scope, spec) in enumerate(_blocks(name, segment))
        ]
      )
    return params

  def logical_axes(self) -> dict:
    """The tree of `init` with a tuple of logical axis names at each leaf."""
    return {
      name: _join([logical_axes(self._abstract(scope, spec), (ax.LAYERS,)) for scope, spec in _blocks(name, segment)])
      for name, segment in zip(self.names, self.segments)
    }

  def unstacked(self, params) -> dict:
    """The parameters with a tuple of trees, one a repeat, for each segment: what a decode loop should hold, so that it
    slices the weights once and not at every token."""
    return {**params, **{name: unstack(params[name]) for name in self.names}}

  def run(self, params, x, context, keys=None, caches=None, *, layer_loop: str = 'auto', remat: Remat = KEEP_ALL):
    """Applies every layer in turn.

    Args:
      params: holds the segments of `init`, or of `unstacked`.
      x: what flows through.
      context: pytree, the same for every layer.
      keys: PRNG keys [num_layers], or None.
      caches: a tuple of pytrees, one a layer, or None. With it the loop is always unrolled: a scan would copy the whole
        cache at every token.
      layer_loop: 'scan' over the repeats, 'unroll', or 'auto': unroll on CPU, where a scan halves the speed, scan
        elsewhere, where compile time must not grow with depth.
      remat: what is computed again in the backward pass.

    Returns:
      x after the last layer, the tuple of new caches or None, and the metrics of all layers added up.
    """
    unrolled = caches is not None or layer_loop == 'unroll' or layer_loop == 'auto' and current().platform == 'cpu'
    metrics, updated, first = {}, [], 0
    for name, segment in zip(self.names, self.segments):
      here = slice(first, first + segment.num_layers)
      layers = [self.layer(scope, remat, prevent_cse=unrolled) for scope, _ in _blocks(name, segment)]
      own_keys = None if keys is None else keys[here]
      loop = functools.partial(_unroll if unrolled else _scan, layers)
      if caches is not None:
        x, found, new_caches = loop(params[name], x, context, own_keys, caches[here])
        updated += new_caches
      elif schedule := ax.schedule():
        x, found = stages.run(loop, params[name], x, context, own_keys, schedule)
      else:
        x, found, _ = loop(params[name], x, context, own_keys)
      for of_block in found:
        metrics = metrics_lib.add(metrics, metrics_lib.of_repeats(of_block))
      first = here.stop
    return x, None if caches is None else tuple(updated), metrics

  def _init_block(self, scope, spec, key):
    return nnx.to_pure_dict(nnx.state(self.create(scope, spec, rngs=nnx.Rngs(params=key))))

  def _abstract(self, scope, spec):
    return nnx.eval_shape(lambda: self.create(scope, spec, rngs=nnx.Rngs(params=jax.random.key(0))))

  @functools.cached_property
  def _graphs(self) -> dict:
    return {
      scope: nnx.graphdef(self._abstract(scope, spec))
      for name, segment in zip(self.names, self.segments)
      for scope, spec in _blocks(name, segment)
    }

  def layer(self, scope: str, remat: Remat = KEEP_ALL, *, prevent_cse: bool = True):
    """The block of a scope as a pure function `layer(params, x, context, key, cache) -> (x, cache, metrics)`."""
    graph = self._graphs[scope]

    def layer(params, x, context, key, cache):
      return remat.applied(nnx.merge(graph, params), prevent_cse)(x, context, key, cache)

    return layer


def unstack(tree) -> tuple:
  """A tuple of trees, one a repeat, of a tree whose arrays are stacked on the leading axis.

  Split by one operation an array, whose gradient is one concatenation; indexing layer by layer would build a
  zero-padded gradient of the whole stack for each layer.
  """
  leaves, structure = jax.tree.flatten(tree)
  return tuple(jax.tree.unflatten(structure, layer) for layer in zip(*map(jax.lax.unstack, leaves)))


def logical_axes(module, prefix: tuple = ()) -> dict:
  """The pure dict of a module's parameters with `prefix` and their logical axis names at each leaf."""
  axes = jax.tree.map(
    lambda v: v.replace(prefix + v.get_metadata('axes')),
    nnx.state(module),
    is_leaf=lambda v: isinstance(v, nnx.Variable),
  )
  return nnx.to_pure_dict(axes)


def _blocks(name, segment) -> list:
  """Scope and spec of each block of the pattern; the scope is the path of its parameters."""
  if len(segment.pattern) == 1:
    return [(name, segment.pattern[0])]
  return [(f'{name}/block_{j}', spec) for j, spec in enumerate(segment.pattern)]


def _join(blocks: list):
  return blocks[0] if len(blocks) == 1 else {f'block_{j}': block for j, block in enumerate(blocks)}


def _split(tree, size: int) -> list:
  return [tree] if size == 1 else [tree[f'block_{j}'] for j in range(size)]


def _scan(layers, params, x, context, keys):
  def repeat(x, slices):
    params, keys = slices
    found = []
    for j, (layer, own) in enumerate(zip(layers, _split(params, len(layers)))):
      x, _, metrics = layer(own, x, context, None if keys is None else keys[j], None)
      found.append(metrics)
    return x, found

  keys = None if keys is None else keys.reshape(-1, len(layers))
  return *jax.lax.scan(repeat, x, (params, keys)), None


def _unroll(layers, params, x, context, keys, caches=None):
  """Each block is traced once: all its repeats are calls of one jaxpr, by which a transformation knows them again."""
  layers = [_jitted(layer) for layer in layers]
  repeats = params if isinstance(params, tuple) else unstack(params)
  flat = [(layer, own) for repeat in repeats for layer, own in zip(layers, _split(repeat, len(layers)))]
  found, updated = [], []
  for i, (layer, own) in enumerate(flat):
    x = _formed_once(x) if caches is None else x
    key, cache = (None if values is None else values[i] for values in (keys, caches))
    x, cache, metrics = layer(own, x, context, key, cache)
    found.append(metrics)
    updated.append(cache)
  of_blocks = [found[j :: len(layers)] for j in range(len(layers))]
  return x, [jax.tree.map(lambda *values: jnp.stack(values), *of_block) for of_block in of_blocks], updated


def _jitted(function):
  # A new function for every trace of the model: what a trace depends on besides its arguments (the mesh, the device
  # compiled for) is not part of the key by which jit finds an earlier one.
  def layer(params, x, context, key, cache):
    return function(params, x, context, key, cache)

  return jax.jit(layer, inline=False)


@jax.custom_vjp
def _formed_once(x):
  """x, whose gradient XLA must form as an array: left alone it fuses sums of several layers into each consumer."""
  return x


_formed_once.defvjp(lambda x: (x, None), lambda _, gradient: (jax.lax.optimization_barrier(gradient),))
