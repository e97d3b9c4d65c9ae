"""Reading, checking and writing configs; everything that knows ml_collections outside configs/ is here.

A config is locked and complete: `configs/base.py` has every key, and the type of a key is that of its value there.
"""

import ast
import difflib
import importlib.util
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from ml_collections import config_dict

from training import durations

Config = config_dict.ConfigDict

_ROOT = Path(__file__).resolve().parents[1]
_FLAG = '--config.'


class ConfigError(ValueError):
  """A mistake in a config, said in words for the person who typed it."""


def load(path: str, overrides: Sequence[str] = ()) -> Config:
  """Reads a config file and changes keys of it.

  Args:
    path: a file that defines `get_config(variant)`, and after a colon the variant: `configs/quickstart.py:tiny`.
    overrides: such as `--config.train.steps=40`, or the same without `--config.`.

  Raises:
    ConfigError: a missing file, unknown variant, unknown key, or value of the wrong type.
  """
  config = _complete(_plain(_run_file(path)), path)
  for override in overrides:
    _override(config, override)
  return config.lock()


def to_json(config: Config) -> dict:
  """The config as dicts, lists, strings, numbers and booleans, for `json.dumps`; `from_json` is its inverse."""
  return _listed(_plain(config))


def from_json(values: dict) -> Config:
  """The config that `to_json` wrote.

  Raises:
    ConfigError: keys are missing or unknown, as in a config.json of another version, or a value has the wrong type.
  """
  return _complete(values, 'config.json').lock()


def _run_file(path: str) -> Config:
  name, _, variant = path.partition(':')
  file = Path(name) if Path(name).exists() else _ROOT / name
  if not file.is_file() or file.suffix != '.py':
    files = sorted(f'configs/{f.name}' for f in (_ROOT / 'configs').glob('*.py') if f.name != '__init__.py')
    near = difflib.get_close_matches(name, files, n=1, cutoff=0.5)
    raise ConfigError(f'no config file {name!r}{_did_you_mean(near)}; there are {", ".join(files)}')
  spec = importlib.util.spec_from_file_location(f'config_file_{file.stem}', file)
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
    config = module.get_config(variant)
  except (AttributeError, TypeError, ValueError) as error:
    raise ConfigError(f'{path}: {error.args[0] if error.args else error}') from error
  if not isinstance(config, Config):
    raise ConfigError(f'{path}: get_config must return a config made from configs/base.py; got {config!r}')
  return config


def _complete(values: dict, source: str) -> Config:
  """The base config, unlocked, with every key set from `values`, which must have exactly its keys."""
  config = _run_file('configs/base.py').unlock()
  _fill(config, values, '', source)
  return config


def _fill(group: Config, values: dict, prefix: str, source: str) -> None:
  if not isinstance(values, Mapping):
    raise ConfigError(f'{source}: {prefix[:-1]} is a group with keys {_listing(group)}; got {values!r}')
  extra, missing = [[f'{prefix}{key}' for key in a if key not in b] for a, b in ((values, group), (group, values))]
  if extra or missing:
    found = [f'{text} {", ".join(keys)}' for text, keys in (('has unknown', extra), ('lacks', missing)) if keys]
    raise ConfigError(f'{source} {" and ".join(found)}: every key of configs/base.py must be there and no other; '
                      'a run of another version continues with that version')
  for key in group:
    if _is_group(group, key):
      _fill(group[key], values[key], f'{prefix}{key}.', source)
    else:
      group[key] = _checked(group, key, values[key], f'{prefix}{key}')


def _override(config: Config, override: str) -> None:
  name, equals, text = override.removeprefix(_FLAG).partition('=')
  if not equals or override.startswith('-') and not override.startswith(_FLAG):
    raise ConfigError(f'{override!r} changes no key; type {_FLAG}GROUP.KEY=VALUE, for example {_FLAG}train.steps=40')
  *parents, key = name.split('.')
  group = config
  for i, parent in enumerate(parents):
    if parent not in group or not _is_group(group, parent):
      raise _unknown(config, group, name, parents[:i], parent)
    group = group[parent]
  if key not in group:
    raise _unknown(config, group, name, parents, key)
  if _is_group(group, key):
    raise ConfigError(f'{name} is a group; set one of its keys {_listing(group[key])}, '
                      f'for example {_FLAG}{name}.{next(iter(group[key]))}=VALUE')
  group[key] = _checked(group, key, _parsed(text, group[key]), name)


def _unknown(config: Config, group: Config, name: str, parents: list[str], key: str) -> ConfigError:
  prefix = ''.join(f'{parent}.' for parent in parents)
  near = [prefix + match for match in difflib.get_close_matches(key, list(group), n=1)]
  last = name.rsplit('.')[-1]
  elsewhere = [path for path in _paths(config) if path.rsplit('.')[-1] == last]
  near = elsewhere or near or difflib.get_close_matches(name, _paths(config), n=1)
  where = f'group {prefix[:-1]!r}' if prefix else 'the config'
  return ConfigError(f'unknown key {name!r}{_did_you_mean(near[:1])}; {where} has {_listing(group)}')


def _parsed(text: str, default):
  try:
    value = ast.literal_eval(text)
  except (ValueError, SyntaxError, TypeError):
    return text
  return text if isinstance(default, str) and not isinstance(value, str) else value


def _checked(group: Config, key: str, value, name: str):
  """`value` as the type that the base config has for this key."""
  default = group[key]
  if group.get_type(key) is object:
    value = value.to_dict() if isinstance(value, Config) else value
    try:
      durations.check(value)
    except ValueError as error:
      raise ConfigError(f'{name}: {error}') from error
    return value
  if isinstance(default, tuple):
    if not isinstance(value, (tuple, list)):
      raise _wrong_type(name, value, "a tuple such as ('first', 'second')")
    if default and not all(isinstance(entry, type(default[0])) for entry in value):
      raise _wrong_type(name, value, f'a tuple of {type(default[0]).__name__}')
    return tuple(value)
  if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
    value = float(value)
  if type(value) is not type(default):
    example = {bool: 'True or False', int: 'a whole number', float: 'a number', str: 'a text'}[type(default)]
    raise _wrong_type(name, value, example)
  if isinstance(value, float) and not math.isfinite(value):
    raise _wrong_type(name, value, 'a finite number')
  return value


def _wrong_type(name: str, value, expected: str) -> ConfigError:
  return ConfigError(f'{name} takes {expected}; got {value!r}')


def _is_group(group: Config, key: str) -> bool:
  return isinstance(group[key], Config) and group.get_type(key) is not object


def _paths(group: Config, prefix: str = '') -> list[str]:
  return [path for key in group
          for path in (_paths(group[key], f'{prefix}{key}.') if _is_group(group, key) else [prefix + key])]


def _plain(config: Config) -> dict:
  return config.to_dict()


def _listed(value):
  if isinstance(value, Mapping):
    return {key: _listed(entry) for key, entry in value.items()}
  return [_listed(entry) for entry in value] if isinstance(value, (tuple, list)) else value


def _listing(group: Config) -> str:
  return ', '.join(group)


def _did_you_mean(names: list[str]) -> str:
  return f'; did you mean {names[0]!r}?' if names else ''
