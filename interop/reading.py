"""A Hugging Face directory as a model of ours: config, tokenizer, and weights that are read a tensor at a time."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Collection, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np

import model as model_lib
from configs import base
from data import tokenizers
from interop import files, rules, tokenizer_files
from interop.families import FAMILIES
from interop.family import Family
from interop.fields import LENGTH, FieldError

_SEQUENCE_LENGTH = 1024  # of the rows to evaluate and train on, where the model reads longer ones


@dataclasses.dataclass(frozen=True)
class Pretrained:
  """A Hugging Face directory, its weights still in their files.

  Attributes:
    directory: where it is.
    family: what its config.json is of.
    original: its config.json.
    config: a whole config of ours, its group `model` resolved.
    tokenizer: that of the directory.
    shapes: of our parameters, by path.
    places: where each tensor stands among them, in the order in which `parts` reads.
    tensors: where each is stored.
    carried: where those are stored that nothing here reads and an export gives back, see `Family.carried`.
    kept: files that an export gives back as they are, by name.
  """

  directory: pathlib.Path
  family: Family
  original: dict
  config: object
  tokenizer: tokenizers.Tokenizer
  shapes: dict[str, tuple[int, ...]]
  places: dict[str, rules.Place]
  tensors: dict[str, files.Tensor]
  carried: dict[str, files.Tensor]
  kept: dict[str, bytes]

  def parts(self) -> Iterator[tuple[str, tuple[int, ...], np.ndarray]]:
    """(path, leading index, array) of all that the parameters consist of, those of a path in order.

    Arrays have the dtype of the file. One tensor of the files is in memory at a time.
    """
    for name, place in self.places.items():
      for path, part in zip(place.paths, place.split(self.tensors[name].read())):
        yield path, place.index, part

  def params(self, shardings=None) -> dict:
    """The parameters, float32.

    Args:
      shardings: pytree of `jax.sharding.Sharding`, one a leaf: each process reads what its devices hold, a leaf at a
        time; None: the default device.
    """
    if shardings is None:
      leaves = {path: np.empty(shape, np.float32) for path, shape in self.shapes.items()}
      for path, index, part in self.parts():
        leaves[path][index] = part
      return nested({path: jnp.asarray(leaf) for path, leaf in leaves.items()})
    placed = {
      jax.tree_util.keystr(path, simple=True, separator='/'): sharding
      for path, sharding in jax.tree_util.tree_flatten_with_path(shardings)[0]
    }
    return nested({path: self._on_devices(path, placed[path]) for path in self.shapes})

  @property
  def num_params(self) -> int:
    return sum(math.prod(shape) for shape in self.shapes.values())

  @property
  def dtypes(self) -> dict[str, str]:
    """Name of the dtype of each tensor in its file."""
    return {name: files.dtype_name(tensor.dtype) for name, tensor in (self.tensors | self.carried).items()}

  def _on_devices(self, path, sharding):
    shape = self.shapes[path]
    bounds = lambda index: tuple(part.indices(size)[:2] for part, size in zip(index, shape))
    wanted = {bounds(index) for index in sharding.addressable_devices_indices_map(shape).values()}
    buffers = {box: np.empty([stop - start for start, stop in box], np.float32) for box in wanted}
    for name, place in self.places.items():
      if path not in place.paths:
        continue
      n = len(place.index)
      boxes = [box for box in buffers if all(a <= i < b for i, (a, b) in zip(place.index, box))]
      if boxes:
        part = place.split(self.tensors[name].read())[place.paths.index(path)]
        for box in boxes:
          target = tuple(i - a for i, (a, _) in zip(place.index, box))
          buffers[box][target] = part[tuple(slice(a, b) for a, b in box[n:])]
    return jax.make_array_from_callback(shape, sharding, lambda index: buffers[bounds(index)])


def read(directory: str | pathlib.Path) -> Pretrained:
  """Opens a Hugging Face directory: config.json, safetensors, tokenizer.

  Raises:
    ValueError: it is of no family that is known here, a field or a tensor cannot be honoured, or a file is missing or
      damaged. Says which.
  """
  directory = pathlib.Path(directory)
  original = _read_config(directory)
  family = recognise(original, directory)
  stored = files.tensors(directory)
  try:
    config = to_config(family, original, stored)
  except (FieldError, ValueError) as error:
    raise FieldError(f'{directory}/config.json: {error}') from error
  shapes = parameter_shapes(config.model)
  places = rules.places(family.rules, shapes)
  tensors, carried = _matched(stored, family, places, directory)
  tokenizer, kept = tokenizer_files.read(directory, original)
  return Pretrained(directory, family, original, config, tokenizer, shapes, places, tensors, carried, kept)


def recognise(original: Mapping, directory) -> Family:
  """The family of a config.json. Raises ValueError if there is none."""
  for family in FAMILIES.values():
    if family.recognises(original):
      return family
  known = '; '.join(f'{family.name}: {", ".join(family.architectures)}' for family in FAMILIES.values())
  raise ValueError(
    f'{directory}/config.json: model_type={original.get("model_type")!r} with architectures='
    f'{original.get("architectures")!r} is not known here; known are {known}'
  )


def to_config(family: Family, original: Mapping, tensors: Collection[str]):
  """A whole config of ours for a config.json and the names of the tensors beside it.

  Raises:
    ValueError: a field cannot be honoured.
  """
  ours = family.without(family.fields.read(original), tensors)
  length = ours.pop(LENGTH)
  config = base.get_config()
  config.objective.name = family.objective
  config.model.update(ours)
  with config.unlocked():
    config.model = model_lib.resolve(config.model)
  config.objective.name = family.objective
  config.data.sequence_length = min(length, _SEQUENCE_LENGTH)
  config.data.batch_tokens = 8 * config.data.sequence_length
  return config


def parameter_shapes(model_config) -> dict[str, tuple[int, ...]]:
  """Shapes of the parameters of a model by path."""
  model = model_lib.create(model_config)
  return rules.leaf_shapes(jax.eval_shape(lambda: model.init(jax.random.key(0))))


def nested(leaves: Mapping[str, object]) -> dict:
  """The nested dict of leaves by path."""
  tree = {}
  for path, leaf in leaves.items():
    *parents, last = path.split('/')
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[last] = leaf
  return tree


def _read_config(directory) -> dict:
  path = directory / 'config.json'
  if not path.is_file():
    raise ValueError(f'{directory} is no directory of a Hugging Face model: it has no config.json')
  try:
    original = json.loads(path.read_text(encoding='utf-8'))
    return dict(original)
  except (ValueError, TypeError) as error:
    raise ValueError(f'{path} is damaged ({error}); fetch it again') from error


def _matched(stored, family, places, directory) -> tuple[dict[str, files.Tensor], dict[str, files.Tensor]]:
  """The stored tensors under the names of `places`, and the carried. Raises ValueError where the two do not agree."""
  stored = {family.name_today(name): tensor for name, tensor in stored.items()}
  if family.prefix and not places.keys() & stored.keys():
    stored = {family.prefix + name: tensor for name, tensor in stored.items()}
  found, carried, unexpected = {}, {}, []
  for name, tensor in stored.items():
    if name in places:
      found[name] = tensor
    elif name in family.duplicates and family.duplicates[name] in stored:
      _check_equal(name, tensor, family.duplicates[name], stored[family.duplicates[name]])
    elif family.is_carried(name):
      carried[name] = tensor
    elif not family.is_buffer(name):
      unexpected.append(name)
  for words, names in (('lacks', sorted(places.keys() - found.keys())), ('has, beyond its config.json,', unexpected)):
    if names:
      more = f' and {len(names) - 3} more' if len(names) > 3 else ''
      raise files.FilesError(f'{directory} {words} the tensors {", ".join(names[:3])}{more}')
  for name, place in places.items():
    if found[name].shape != place.shape:
      raise files.FilesError(
        f'{directory}: {name} is {list(found[name].shape)}, but its config.json makes it {list(place.shape)}'
      )
    if not jnp.issubdtype(found[name].dtype, jnp.floating):
      raise files.FilesError(f'{directory}: {name} holds {found[name].dtype}; quantised weights are not read')
  return {name: found[name] for name in places}, carried


def _check_equal(name, tensor, other_name, other):
  same = (tensor.shape, tensor.dtype) == (other.shape, other.dtype) and np.array_equal(
    tensor.read().view(np.uint8), other.read().view(np.uint8)
  )
  if not same:
    raise files.FilesError(f'{name} is not equal to {other_name}, though config.json ties them (tie_word_embeddings)')
