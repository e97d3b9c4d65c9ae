"""A model of ours as a Hugging Face directory."""

import collections
import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping

import numpy as np

import model as model_lib
from configs import base
from data import cache
from interop import files, reading, rules, tokenizer_files
from interop.families import FAMILIES
from interop.family import Family
from interop.fields import LENGTH, FieldError

# Of a model: how it is initialised and computed, which a config.json does not say.
_UNSAID = (
  'init',
  'init_scale',
  'init_depth_scaling',
  'layer_loop',
  'remat',
  'attention.implementation',
  'moe.implementation',
)
_TORCH_NAMES = {'F32': 'float32', 'BF16': 'bfloat16', 'F16': 'float16', 'F64': 'float64'}


@dataclasses.dataclass(frozen=True)
class Origin:
  """What is kept of the directory that a model came from.

  Attributes:
    config: its config.json; {} where the model came from nowhere.
    dtypes: of its tensors by name, see `files.DTYPES`.
    kept: files of the tokenizer and of text generation, by name.
  """

  config: dict = dataclasses.field(default_factory=dict)
  dtypes: dict[str, str] = dataclasses.field(default_factory=dict)
  kept: dict[str, bytes] = dataclasses.field(default_factory=dict)

  @classmethod
  def of(cls, pretrained: reading.Pretrained) -> 'Origin':
    return cls(pretrained.original, pretrained.dtypes, pretrained.kept)

  @classmethod
  def load(cls, directory: pathlib.Path) -> 'Origin':
    """What `save` wrote; nothing where there is no such directory."""
    if not directory.is_dir():
      return cls()
    config, dtypes = (json.loads((directory / name).read_text(encoding='utf-8')) for name in _OWN)
    return cls(config, dtypes, {file.name: file.read_bytes() for file in directory.iterdir() if file.name not in _OWN})

  def save(self, directory: pathlib.Path) -> None:
    with cache.new_directory(directory) as unfinished:
      for name, value in zip(_OWN, (self.config, self.dtypes)):
        (unfinished / name).write_text(json.dumps(value, indent=2) + '\n', encoding='utf-8')
      for name, content in self.kept.items():
        (unfinished / name).write_bytes(content)


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
  places = rules.places(chosen.rules, reading.parameter_shapes(config.model))
  known = origin.dtypes if origin.config.get('model_type') == chosen.name else {}
  dtypes = {name: files.DTYPES[dtype or known.get(name, 'F32')] for name in places}
  specs = {name: (dtypes[name], place.shape) for name, place in places.items()}

  def arrays():
    for name, place in places.items():
      yield name, place.join([read(path, place.index, dtypes[name]) for path in place.paths])

  usual = collections.Counter(dtypes.values()).most_common(1)[0][0]
  head = {'architectures': [chosen.architectures[0]], 'model_type': chosen.name}
  if 'architectures' in origin.config and origin.config.get('model_type') == chosen.name:
    head['architectures'] = origin.config['architectures']
  tokens = tokenizer_files.write(tokenizer, origin.kept, config.data.sequence_length)
  ids = {} if origin.config else tokenizer_files.special_ids(tokenizer)
  with cache.new_directory(directory) as unfinished:
    files.write(unfinished, specs, arrays(), shard_bytes)
    described = head | written | ids | {'dtype': _TORCH_NAMES[files.dtype_name(usual)]}
    described = {name: value for name, value in described.items() if name != 'torch_dtype'}
    texts = {'config.json': json.dumps(described, indent=2) + '\n', 'README.md': card(chosen)}
    if 'generation_config.json' not in tokens:
      texts['generation_config.json'] = json.dumps(tokenizer_files.special_ids(tokenizer), indent=2) + '\n'
    for name, content in tokens.items():
      (unfinished / name).write_bytes(content)
    for name, text in texts.items():
      (unfinished / name).write_text(text, encoding='utf-8')
  return chosen


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
  back = family.fields.read(written)
  if family.absent:
    back = family.without(back, rules.places(family.rules, reading.parameter_shapes(config.model)))
  back.pop(LENGTH)
  again = base.get_config().model
  again.update(back)
  again = flat(model_lib.resolve(again))
  for key, value in ours.items():
    if key not in _UNSAID and again[key] != value and _matters(key, ours):
      raise FieldError(f'model.{key}={value!r} cannot be written as {family.name}, whose models have {again[key]!r}')
  return written


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
  if key.startswith('moe.'):
    return ours['moe.num_experts'] > 0
  if key.startswith('relative.'):
    return ours['positions'] in ('t5', 'shaw')
  return not key.startswith('rope') or ours['positions'] == 'rope'
