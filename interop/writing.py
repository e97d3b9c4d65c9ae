"""A model of ours as a Hugging Face directory."""

import collections
import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping

import numpy as np

import model as model_lib
from configs import base
from data import cache
from interop import files, reading, rules, tokenizer_files
from interop.families import FAMILIES
from interop.family import Family
from interop.fields import LENGTH, FieldError

# Of a model: how it is initialised, trained and computed, which does not change what it says of a text.
_UNSAID = (
  *('init', 'init_scale', 'init_depth_scaling', 'layer_loop', 'remat', 'attention.implementation'),
  *('dropout_rate', 'attention.dropout_rate', 'moe.balance_loss', 'moe.z_loss', 'moe.jitter', 'moe.implementation'),
)
_TORCH_NAMES = {'F32': 'float32', 'BF16': 'bfloat16', 'F16': 'float16', 'F64': 'float64'}


@dataclasses.dataclass(frozen=True)
class Origin:
  """What is kept of the directory that a model came from.

  Attributes:
    config: its config.json; {} where the model came from nowhere.
    dtypes: of its tensors by name, see `files.DTYPES`.
    kept: files of the tokenizer and of text generation, by name.
    carried: where the tensors are that nothing here reads, by name, see `Family.carried`.
  """

  config: dict = dataclasses.field(default_factory=dict)
  dtypes: dict[str, str] = dataclasses.field(default_factory=dict)
  kept: dict[str, bytes] = dataclasses.field(default_factory=dict)
  carried: dict[str, files.Tensor] = dataclasses.field(default_factory=dict)

  @classmethod
  def of(cls, pretrained: reading.Pretrained) -> 'Origin':
    return cls(pretrained.original, pretrained.dtypes, pretrained.kept, pretrained.carried)

  @classmethod
  def load(cls, directory: pathlib.Path) -> 'Origin':
    """What `save` wrote; nothing where there is no such directory."""
    if not directory.is_dir():
      return cls()
    config, dtypes = (json.loads((directory / name).read_text(encoding='utf-8')) for name in _OWN)
    carried = files.tensors(directory) if (directory / files.ONE_FILE).is_file() else {}
    other = [file for file in directory.iterdir() if file.name not in (*_OWN, files.ONE_FILE)]
    return cls(config, dtypes, {file.name: file.read_bytes() for file in other}, carried)

  def save(self, directory: pathlib.Path) -> None:
    with cache.new_directory(directory) as unfinished:
      for name, value in zip(_OWN, (self.config, self.dtypes)):
        (unfinished / name).write_text(json.dumps(value, indent=2) + '\n', encoding='utf-8')
      for name, content in self.kept.items():
        (unfinished / name).write_bytes(content)
      if self.carried:
        specs = {name: (tensor.dtype, tensor.shape) for name, tensor in self.carried.items()}
        arrays = ((name, tensor.read()) for name, tensor in self.carried.items())
        files.write(unfinished, specs, arrays, shard_bytes=2**63)


_OWN = ('config.json', 'dtypes.json')


def write(
  directory: str | pathlib.Path,
  config,
  tokenizer,
  read: Callable[[str, tuple[int, ...], np.dtype], np.ndarray],
  origin: Origin,
  *,
  card: Callable[[Family], str],
  family: str | None = None,
  shard_bytes: int = 5 * 10**9,
  dtype: str | None = None,
) -> Family:
  """Writes a directory that transformers loads: config.json, safetensors, tokenizer, generation_config.json, README.md.

  Args:
    directory: made; absent or empty before.
    config: the whole resolved config of the model.
    tokenizer: the model's.
    read: `read(path, leading index, dtype) -> array` of one of our parameters; called in order for each path. After an
      error of it nothing is left behind.
    origin: where the model once came from.
    card: `card(family) -> README.md`.
    family: as which it is written; None: that of the origin, or else the first that can hold it.
    shard_bytes: of a file of weights, unless a single tensor is larger.
    dtype: of all tensors, see `files.DTYPES`; None: that of the origin, or float32.

  Returns:
    The family.

  Raises:
    ValueError: no family can hold the model, saying which key stands against it; or the directory is not empty.
  """
  directory = pathlib.Path(directory)
  if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
    raise ValueError(f'{directory} is there already; name a new directory')
  chosen, written = choose(config, origin.config, family)
  head = _head(chosen, origin) | written
  specs, arrays = _tensors(chosen, (head['architectures'] or [''])[0], config, read, origin, dtype)
  usual = collections.Counter(dtype for dtype, _ in specs.values()).most_common(1)[0][0]
  tokens = tokenizer_files.write(tokenizer, origin.kept, config.data.sequence_length)
  ids = {} if origin.config else tokenizer_files.special_ids(tokenizer)
  described = head | ids | {'dtype': _TORCH_NAMES[files.dtype_name(usual)]}
  described.pop('torch_dtype', None)
  texts = {'config.json': json.dumps(described, indent=2) + '\n', 'README.md': card(chosen)}
  if 'generation_config.json' not in tokens:
    texts['generation_config.json'] = json.dumps(tokenizer_files.special_ids(tokenizer), indent=2) + '\n'
  with cache.new_directory(directory) as unfinished:
    files.write(unfinished, specs, arrays, shard_bytes)
    for name, content in tokens.items():
      (unfinished / name).write_bytes(content)
    for name, text in texts.items():
      (unfinished / name).write_text(text, encoding='utf-8')
  return chosen


def _at_home(family, origin) -> bool:
  """Whether a model goes back to the family that it came from."""
  return origin.config.get('model_type') == family.name


def _head(family, origin) -> dict:
  """What a config.json begins with."""
  known = origin.config if _at_home(family, origin) else {}
  return {'architectures': known.get('architectures', [family.architectures[0]]), 'model_type': family.name}


def _tensors(family, architecture, config, read, origin, dtype) -> tuple[dict, Iterator[tuple[str, np.ndarray]]]:
  """The dtype and shape of each tensor of a directory by name, and one after the other the tensors themselves."""
  places, at_home = rules.places(family.rules, reading.parameter_shapes(config.model)), _at_home(family, origin)
  known, carried = (origin.dtypes, origin.carried) if at_home else ({}, {})
  copied = {other: name for name, other in family.copies.items() if other in places and name not in carried}
  copies = {name: places[other] for other, name in copied.items()}
  dtypes = {name: files.DTYPES[dtype or known.get(name, 'F32')] for name in [*places, *carried, *copies]}
  if family.is_bare(architecture) and family.carried and not at_home:
    raise FieldError(f'{architecture} has a pooler, which this model has not; only a model with a head can be written')
  named = functools.partial(family.name_in, architecture)

  def arrays():
    for name, place in places.items():
      array = place.join([read(path, place.index, dtypes[name]) for path in place.paths])
      yield named(name), array
      if name in copied:
        yield named(copied[name]), array.astype(dtypes[copied[name]])
    for name, tensor in carried.items():
      yield named(name), tensor.read().astype(dtypes[name])

  return {named(name): (dtypes[name], tensor.shape) for name, tensor in (places | carried | copies).items()}, arrays()


def choose(config, original: Mapping, family: str | None = None) -> tuple[Family, dict]:
  """The family that holds a model, and its config.json; see `write`."""
  if family is not None and family not in FAMILIES:
    raise ValueError(f'--family={family} does not exist; choose one of {", ".join(FAMILIES)}')
  named = family or original.get('model_type')
  problems = {}
  for name in [named] if named else FAMILIES:
    before = original if original.get('model_type') == name else {}
    try:
      return FAMILIES[name], to_original(FAMILIES[name], config, before)
    except ValueError as error:
      problems[name] = str(error)
  if named:
    raise FieldError(problems[named])
  words = '; '.join(problems.values())
  raise FieldError(f'no family of transformers that is known here holds this model: {words}')


def to_original(family: Family, config, before: Mapping) -> dict:
  """The config.json of a model of ours.

  Raises:
    FieldError: the family has no such models; says which key stands against it.
  """
  ours = flat(config.model)
  length = config.model.max_length or config.data.sequence_length
  written = family.fields.write(ours | {LENGTH: length}, before)
  tensors = rules.places(family.rules, reading.parameter_shapes(config.model)) if family.absent else ()
  again = _read_back(family, written, tensors)
  for key, value in ours.items():
    if key not in _UNSAID and again[key] != value and _matters(key, ours):
      raise FieldError(f'model.{key}={value!r} cannot be written as {family.name}, whose models have {again[key]!r}')
  # A field that was null stays so where that means the same number.
  for name in [name for name, value in written.items() if value is not None and before.get(name, value) is None]:
    if _read_back(family, written | {name: None}, tensors) == again:
      written[name] = None
  return written


def _read_back(family, written, tensors) -> dict:
  model = family.without(family.fields.read(written), tensors)
  model.pop(LENGTH)
  group = base.get_config().model
  group.update(model)
  return flat(model_lib.resolve(group))


def flat(group, prefix: str = '') -> dict:
  """The values of a group by path, such as 'attention.window'."""
  values = {}
  for key, value in group.items():
    values |= flat(value, f'{prefix}{key}.') if hasattr(value, 'items') else {f'{prefix}{key}': value}
  return values


def _matters(key, ours) -> bool:
  """Whether anything reads the key in this model."""
  if key == 'max_length':
    return ours['positions'] == 'learned'
  has_experts = ours['moe.num_experts'] > 0
  if key == 'mlp_dim':
    return not has_experts or ours['moe.first_dense'] > 0 or ours['moe.every'] > 1
  if key.startswith('moe.') and key != 'moe.num_experts':
    return has_experts
  if key.startswith('relative.'):
    return ours['positions'] in ('t5', 'shaw')
  return not key.startswith('rope') or ours['positions'] == 'rope'
