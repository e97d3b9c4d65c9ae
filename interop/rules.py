"""Which tensor of an original holds which of our parameters, said so that it is read in both directions.

A family is a tuple of rules. Names of theirs may have the placeholder `{layer}`, which counts the layers of a stack
from 0, and `{expert}`; a path of ours has `{layer}` where the stack puts its layers. So
`dense('h.{layer}.attn.q', 'decoder/{layer}/attention/query')` says where the weight and the bias, if there is one, of
every layer's query projection are.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np

_LAYER, _EXPERT = '{layer}', '{expert}'


@dataclasses.dataclass(frozen=True)
class Rule:
  """One kind of tensor of theirs. Of ours, the last dimensions are outputs, those before them inputs.

  Attributes:
    theirs: name of the tensor.
    ours: paths of the parameters in it; several where it is fused, side by side along the outputs.
    inputs: how many dimensions of ours are inputs of a matrix; theirs has one for them all, as for the outputs.
    transposed: theirs is [outputs, inputs], as `torch.nn.Linear` keeps it.
    interleaved: the fused alternate for each index of the first output dimension: q, k, v of head 0, then of head 1.
    batch: leading dimensions of both, in front of a matrix.
    flat: False: theirs has our dimensions one by one.
    ones: dimensions of 1 in front of theirs.
    where: (path of ours, whether the model has it): theirs has another name otherwise; None: the same name always.
  """

  theirs: str
  ours: tuple[str, ...]
  inputs: int = 0
  transposed: bool = False
  interleaved: bool = False
  batch: int = 0
  flat: bool = True
  ones: int = 0
  where: tuple[str, bool] | None = None

  def holds(self, shapes: Mapping, prefix: str = '') -> bool:
    """Whether a model with parameters of these paths names the tensor so; `prefix` stands for `{layer}`."""
    return self.where is None or (self.where[0].replace(_LAYER, prefix) in shapes) == self.where[1]

  def shape(self, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The shape of theirs, given those of ours."""
    batch, inputs, outputs = self._parts(shapes[0])
    if self.flat:
      inputs = (math.prod(inputs),) if self.inputs else ()
      outputs = (sum(math.prod(self._parts(shape)[2]) for shape in shapes),)
    return (1,) * self.ones + batch + (outputs + inputs if self.transposed else inputs + outputs)

  def split(self, tensor: np.ndarray, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    """What theirs holds of each of ours, mostly as views."""
    batch, inputs, outputs = self._parts(shapes[0])
    lead = (*batch, math.prod(inputs)) if self.inputs else batch
    if self.transposed:
      tensor = tensor.reshape(*batch, -1, lead[-1]).swapaxes(-1, -2)
    if self.interleaved:
      tensor = tensor.reshape(*lead, outputs[0], len(shapes), -1)
      return [tensor[..., j, :].reshape(shape) for j, shape in enumerate(shapes)]
    ends = np.cumsum([math.prod(self._parts(shape)[2]) for shape in shapes])
    parts = np.split(tensor.reshape(*lead, -1), ends[:-1], axis=-1)
    return [part.reshape(shape) for part, shape in zip(parts, shapes)]

  def join(self, parts: Sequence[np.ndarray]) -> np.ndarray:
    """Theirs, from each of ours: the inverse of `split`."""
    shapes = [part.shape for part in parts]
    batch, inputs, outputs = self._parts(shapes[0])
    lead = (*batch, math.prod(inputs)) if self.inputs else batch
    if self.interleaved:
      tensor = np.stack([part.reshape(*lead, outputs[0], -1) for part in parts], axis=-2).reshape(*lead, -1)
    elif len(parts) == 1:
      tensor = parts[0].reshape(*lead, -1)
    else:
      tensor = np.concatenate([part.reshape(*lead, -1) for part in parts], axis=-1)
    if self.transposed:
      tensor = tensor.swapaxes(-1, -2)
    return tensor.reshape(self.shape(shapes))

  def _parts(self, shape):
    return shape[: self.batch], shape[self.batch : self.batch + self.inputs], shape[self.batch + self.inputs :]


def dense(theirs: str, *ours: str, inputs: int = 1, interleaved: bool = False) -> tuple[Rule, ...]:
  """A `torch.nn.Linear`: kernel and, where there is one, bias; several of `ours` where it is fused."""
  return _linear(theirs, ours, inputs, True, interleaved)


def conv1d(theirs: str, *ours: str, inputs: int = 1) -> tuple[Rule, ...]:
  """GPT-2's linear layer, whose weight is [inputs, outputs]."""
  return _linear(theirs, ours, inputs, False, False)


def norm(theirs: str, ours: str) -> tuple[Rule, ...]:
  """A norm: scale and, where there is one, bias."""
  return Rule(f'{theirs}.weight', (f'{ours}/scale',)), Rule(f'{theirs}.bias', (f'{ours}/bias',))


def table(theirs: str, ours: str) -> tuple[Rule, ...]:
  """A table of vectors: an embedding, or a head without a bias."""
  return (Rule(f'{theirs}.weight', (f'{ours}/table',), inputs=1),)


def _linear(theirs, ours, inputs, transposed, interleaved):
  return (
    Rule(f'{theirs}.weight', tuple(f'{path}/kernel' for path in ours), inputs, transposed, interleaved),
    Rule(f'{theirs}.bias', tuple(f'{path}/bias' for path in ours), interleaved=interleaved),
  )


@dataclasses.dataclass(frozen=True)
class Place:
  """Where one tensor of theirs stands among our parameters.

  Attributes:
    rule: how they hold each other.
    paths: of our leaves.
    index: into the leading dimensions of the leaves: the repeat, the expert.
    shapes: of what the tensor holds of each leaf.
  """

  rule: Rule
  paths: tuple[str, ...]
  index: tuple[int, ...]
  shapes: tuple[tuple[int, ...], ...]

  @property
  def shape(self) -> tuple[int, ...]:
    """Of theirs."""
    return self.rule.shape(self.shapes)

  def split(self, tensor: np.ndarray) -> list[np.ndarray]:
    return self.rule.split(tensor, self.shapes)

  def join(self, parts: Sequence[np.ndarray]) -> np.ndarray:
    return self.rule.join(parts)


def places(rules: Sequence[Rule], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Place]:
  """Every tensor of theirs for a tree of ours; of each leaf, the tensors come in increasing order of their index.

  A rule none of whose paths the tree has is left out: a bias that the model does not have.

  Args:
    rules: of the family.
    shapes: of our leaves, by path.

  Raises:
    ValueError: rules leave a leaf out or claim it twice, which is a defect of the family.
  """
  found = {}
  for rule in rules:
    if _LAYER not in rule.ours[0] and rule.holds(shapes):
      found |= _placed(rule, shapes, rule.theirs, rule.ours, ())
  for root in dict.fromkeys(rule.ours[0].partition(_LAYER)[0] for rule in rules if _LAYER in rule.ours[0]):
    for i, (prefix, repeat) in enumerate(layers(shapes, root)):
      for rule in rules:
        if rule.ours[0].startswith(root + _LAYER) and rule.holds(shapes, prefix):
          paths = tuple(path.replace(_LAYER, prefix) for path in rule.ours)
          found |= _placed(rule, shapes, rule.theirs.replace(_LAYER, str(i)), paths, (repeat,))
  elements = dict.fromkeys(shapes, 0)
  for place in found.values():
    for path, shape in zip(place.paths, place.shapes):
      elements[path] += math.prod(shape)
  if wrong := [path for path, shape in shapes.items() if elements[path] != math.prod(shape)]:
    raise ValueError(f'the rules do not cover {", ".join(wrong)} exactly once')
  return found


def layers(shapes: Mapping[str, tuple[int, ...]], root: str = '') -> list[tuple[str, int]]:
  """Path and repeat of each layer of the stack at `root` ('' or ending in '/'), in order; see `model.stack.Stack`."""
  found, i = [], 0
  while True:
    segment = f'layers_{i}' if i else 'layers'
    paths = [path.removeprefix(root) for path in shapes if path.startswith(f'{root}{segment}/')]
    if not paths:
      return found
    blocks = sorted({path.split('/')[1] for path in paths if path.split('/')[1].startswith('block_')})
    names = [f'{segment}/block_{j}' for j in range(len(blocks))] or [segment]
    repeats = shapes[root + paths[0]][0]
    found += [(name, repeat) for repeat in range(repeats) for name in names]
    i += 1


def _placed(rule, shapes, name, paths, index):
  existing = [path in shapes for path in paths]
  if not any(existing):
    return {}
  if not all(existing):
    raise ValueError(f'{name} holds {", ".join(paths)}, of which only some exist')
  if _EXPERT in name:
    experts = shapes[paths[0]][len(index)]
    return {
      name.replace(_EXPERT, str(e)): Place(rule, paths, (*index, e), _inner(shapes, paths, len(index) + 1))
      for e in range(experts)
    }
  return {name: Place(rule, paths, index, _inner(shapes, paths, len(index)))}


def _inner(shapes, paths, leading):
  return tuple(tuple(shapes[path][leading:]) for path in paths)


def leaf_shapes(tree) -> dict[str, tuple[int, ...]]:
  """Shapes of a pytree's leaves by path, such as 'layers/mlp/up/kernel'."""
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {jax.tree_util.keystr(path, simple=True, separator='/'): tuple(leaf.shape) for path, leaf in leaves}
