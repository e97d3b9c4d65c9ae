"""What the backward pass keeps of each layer of a model: the memory of activations, before anything is compiled."""

import collections
import contextlib
import dataclasses
import functools
import re

import jax

import model as model_lib
import objectives
import precision
from model.remat import Remat
from model.stack import Stack


@dataclasses.dataclass(frozen=True)
class Kept:
  """What one kind of layer keeps between its forward and its backward pass.

  Attributes:
    path: of its parameters, such as 'layers' or 'decoder/layers/block_1'.
    layers: how many there are of it.
    entering: bytes of what enters one of them.
    inside: bytes of what one keeps besides, by the module that made it and its operation.
  """

  path: str
  layers: int
  entering: int
  inside: dict[str, int]

  @property
  def bytes(self) -> int:
    """Of one layer."""
    return self.entering + sum(self.inside.values())


def of_layers(config, batch) -> list[Kept]:
  """What each kind of layer keeps of a batch, as `model.remat` and `precision` say.

  It is what differentiation asks for before a compiler looks at it, on one device. Parameters are not counted, nor what
  all layers share (positions, masks).

  Args:
    config: the whole config, `model.vocab_size` given.
    batch: arrays or ShapeDtypeStructs by the names of the objective: what one device computes at a time.
  """
  stacks = []
  model = _watched(model_lib.create(config.model), stacks)
  task = objectives.make_task(objectives.create(config.objective), model)
  params = jax.eval_shape(task.init, jax.random.key(0))
  jax.eval_shape(task.loss, params, batch, jax.random.key(0))
  return [kept for stack in stacks for kept in _of_stack(config, stack)]


def table(kept: list[Kept], largest: int = 8) -> str:
  """For printing: bytes of a layer and of all, and of each kind what makes the `largest` part of it."""
  rows = [('layer', 'layers', 'bytes of one', 'bytes')]
  for block in kept:
    rows.append((block.path, str(block.layers), f'{block.bytes:,}', f'{block.layers * block.bytes:,}'))
    parts = sorted(block.inside.items(), key=lambda part: -part[1])[:largest]
    rows += [(f'  {name}', '', f'{size:,}', '') for name, size in [('what enters', block.entering), *parts]]
  rows.append(('together', str(sum(b.layers for b in kept)), '', f'{sum(b.layers * b.bytes for b in kept):,}'))
  widths = [max(map(len, column)) for column in zip(*rows)]
  lines = ((row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])) for row in rows)
  return '\n'.join('  '.join(line).rstrip() for line in lines)


@dataclasses.dataclass(frozen=True, eq=False)
class _Watched(Stack):
  """A stack that notes the shapes with which it is called, and computes nothing."""

  scope: str
  calls: list

  def run(self, params, x, context, keys=None, caches=None, **_):
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (params, x, context, keys))
    self.calls.append((self, *shapes))
    return x, caches, {}


def _watched(model, calls):
  """The model with its stacks watched, in whichever of its fields there are towers."""
  towers = {name: getattr(model, name) for name in ('tower', 'encoder', 'decoder') if hasattr(model, name)}

  def watched(name, tower):
    stack = _Watched(tower.stack.segments, tower.stack.create, '' if name == 'tower' else name, calls)
    return dataclasses.replace(tower, stack=stack)

  return dataclasses.replace(model, **{name: watched(name, tower) for name, tower in towers.items()})


def _of_stack(config, call):
  stack, params, x, context, keys = call
  one = lambda tree: jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), tree)
  for scope, number in stack.blocks.items():
    path = '/'.join(filter(None, (stack.scope, scope)))
    own = one(functools.reduce(dict.__getitem__, scope.split('/'), params))
    layer = _scoped(stack.layer(scope, Remat.of(config.model)), stack.scope)
    arguments = own, x, context, None if keys is None else one(keys)
    policy = precision.policy(config.precision)
    inside = _kept_inside(precision.mixed_precision(layer, policy.within(layer, *arguments)), *arguments)
    yield Kept(path, number, x.size * x.dtype.itemsize, inside)


def _scoped(layer, scope):
  def function(params, x, context, key):
    with jax.named_scope(scope) if scope else contextlib.nullcontext():
      return layer(params, x, context, key, None)[::2]

  return function


def _kept_inside(layer, params, x, *others) -> dict[str, int]:
  """Bytes by the place in the program of what `jax.vjp` of a layer keeps, its arguments left out."""

  def residuals(params, x, *others):
    return jax.tree.leaves(jax.vjp(lambda params, x: layer(params, x, *others), params, x)[1])

  jaxpr = jax.make_jaxpr(residuals)(params, x, *others).jaxpr
  makers = {var: eqn for eqn in jaxpr.eqns for var in eqn.outvars}
  inside = collections.Counter()
  for var in {var for var in jaxpr.outvars if var in makers}:
    stack = re.sub(r'\w+\(|\)', '', str(makers[var].source_info.name_stack))
    inside[f'{stack}: {makers[var].primitive.name}'] += var.aval.size * var.aval.dtype.itemsize
  return dict(inside)
