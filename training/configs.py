"""Reading, checking and writing configs; everything that knows ml_collections outside configs/ is here.

A config is locked and complete: `configs/base.py` has every key and says what it may hold.
"""

import ast
import difflib
import importlib.util
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from ml_collections import config_dict

Config = config_dict.ConfigDict

_ROOT = Path(__file__).resolve().parents[1]
_BASE = 'configs/base.py'
_FLAG = '--config.'
_LOGGER = logging.getLogger(__name__)


class ConfigError(ValueError):
  """A mistake in a config, said in words for the person who typed it."""


def load(path: str, overrides: Sequence[str] = ()) -> Config:
  """Reads a config file and changes keys of it.

  Args:
    path: a file that defines `get_config(variant)`, and after a colon the variant: `configs/quickstart.py:tiny`; or the
      config.json of a run.
    overrides: such as `--config.train.steps=40`, or the same without `--config.`.

  Raises:
    ConfigError: a missing file, unknown variant, unknown key, or value that the key does not take.
  """
  config = _read_json(path) if path.endswith('.json') else _complete(path)
  for override in overrides:
    _override(config, override)
  return config


def _complete(path: str) -> Config:
  config = _run_file(_BASE)
  values = _flattened(_run_file(path).to_dict(), config, path)
  if lacking := [key for key in flat(config) if key not in values]:
    raise ConfigError(f'{path} lacks {", ".join(lacking)}: get_config starts from base.get_config() and changes keys')
  _set_all(config, values, path)
  return config


def _read_json(path: str) -> Config:
  try:
    return from_json(json.loads(Path(path).read_text(encoding='utf-8')))
  except (OSError, json.JSONDecodeError) as error:
    raise ConfigError(f'{path} is no readable config.json: {error}') from error


def to_json(config: Config) -> dict:
  """The config as dicts, lists, strings, numbers and booleans, for `json.dumps`; `from_json` is its inverse."""
  return _listed(config.to_dict())


def from_json(values: dict) -> Config:
  """The config that `to_json` wrote, now or in an older version.

  Keys that have moved are read under their old names (`MOVED` in configs/base.py). Keys that the version did not have
  take the value that means what it did, which is logged.

  Raises:
    ConfigError: a key is unknown, or does not take its value.
  """
  base = _module(_file(_BASE))
  config = base.get_config()
  values = _flattened(values, config, 'config.json')
  for old in [key for key in base.MOVED if key in values]:
    if base.MOVED[old] in values:
      raise ConfigError(f'config.json has both {old} and {base.MOVED[old]}, its new name; remove the one that is wrong')
    values[base.MOVED[old]] = values.pop(old)
  defaults = flat(config) | base.AS_BEFORE
  added = {key: defaults[key] for key in flat(config) if key not in values}
  _set_all(config, values | added, 'config.json')
  if added:
    words = ', '.join(f'{key}={value}' for key, value in added.items())
    _LOGGER.warning(f'config.json is of an older version; it goes on as before with {words}')
  return config


def flat(config: Config, prefix: str = '') -> dict:
  """The values of a config by path, such as 'model.attention.qk_norm'."""
  values = {}
  for key in config:
    values |= flat(config[key], f'{prefix}{key}.') if _is_group(config, key) else {f'{prefix}{key}': config[key]}
  return values


def _file(name: str) -> Path:
  file = Path(name) if Path(name).exists() else _ROOT / name
  if not file.is_file() or file.suffix != '.py':
    files = sorted(f'configs/{f.name}' for f in (_ROOT / 'configs').glob('*.py') if 'def get_config' in f.read_text())
    near = difflib.get_close_matches(name, files, n=1, cutoff=0.5)
    raise ConfigError(f'no config file {name!r}{_did_you_mean(near)}; there are {", ".join(files)}')
  return file


def _module(file: Path):
  spec = importlib.util.spec_from_file_location(f'config_file_{file.stem}', file)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def _run_file(path: str) -> Config:
  name, _, variant = path.partition(':')
  file = _file(name)
  try:
    config = _module(file).get_config(variant)
  except (AttributeError, TypeError, ValueError) as error:
    raise ConfigError(f'{path}: {error.args[0] if error.args else error}') from error
  if not isinstance(config, Config):
    raise ConfigError(f'{path}: get_config must return a config made from configs/base.py; got {config!r}')
  return config


def _flattened(values: Mapping, group: Config, source: str, prefix: str = '') -> dict:
  """Values by path, as `flat` gives them, from nested dicts with the groups of `group`."""
  if not isinstance(values, Mapping):
    raise ConfigError(f'{source}: {prefix[:-1]} is a group with keys {_listing(group)}; got {values!r}')
  found = {}
  for key, value in values.items():
    nested = key in group and _is_group(group, key)
    found |= _flattened(value, group[key], source, f'{prefix}{key}.') if nested else {f'{prefix}{key}': value}
  return found


def _set_all(config: Config, values: dict, source: str) -> None:
  known = flat(config)
  if unknown := [path for path in values if path not in known]:
    raise ConfigError(
      f'{source} has unknown {", ".join(unknown)}: configs/base.py does not have it; a run of another '
      'version continues with that version'
    )
  for path, value in values.items():
    *parents, key = path.split('.')
    group = config
    for parent in parents:
      group = group[parent]
    _set(group, key, value)


def _set(group: Config, key: str, value) -> None:
  try:
    group[key] = value
  except ValueError as error:
    raise ConfigError(str(error)) from error


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
    raise ConfigError(
      f'{name} is a group; set one of its keys {_listing(group[key])}, '
      f'for example {_FLAG}{name}.{next(iter(group[key]))}=VALUE'
    )
  _set(group, key, _parsed(text, group[key]))


def _unknown(config: Config, group: Config, name: str, parents: list[str], key: str) -> ConfigError:
  if new := _module(_file(_BASE)).MOVED.get(name):
    return ConfigError(f'unknown key {name!r}: it is {new!r} now; type {_FLAG}{new}=VALUE')
  prefix = ''.join(f'{parent}.' for parent in parents)
  near = [prefix + match for match in difflib.get_close_matches(key, list(group), n=1)]
  last = name.rsplit('.')[-1]
  elsewhere = [path for path in flat(config) if path.rsplit('.')[-1] == last]
  near = (
    difflib.get_close_matches(name, elsewhere, n=2, cutoff=0)
    or near
    or difflib.get_close_matches(name, flat(config), n=1)
  )
  where = f'group {prefix[:-1]!r}' if prefix else 'the config'
  return ConfigError(f'unknown key {name!r}{_did_you_mean(near)}; {where} has {_listing(group)}')


def _parsed(text: str, default):
  try:
    value = ast.literal_eval(text)
  except (ValueError, SyntaxError, TypeError):
    return text
  return text if isinstance(default, str) and not isinstance(value, str) else value


def _is_group(group: Config, key: str) -> bool:
  return isinstance(group[key], Config)


def _listed(value):
  if isinstance(value, Mapping):
    return {key: _listed(entry) for key, entry in value.items()}
  return [_listed(entry) for entry in value] if isinstance(value, (tuple, list)) else value


def _listing(group: Config) -> str:
  return ', '.join(group)


def _did_you_mean(names: list[str]) -> str:
  return f'; did you mean {" or ".join(map(repr, names))}?' if names else ''
