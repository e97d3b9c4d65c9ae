"""What a config key may hold: its default with type, bounds or choices, and groups that refuse anything else.

`configs/base.py` declares every key with one of the functions below. From then on a group checks each assignment, in a
config file, on the command line or in a notebook, and says what was given, what is allowed and what to type.
"""

import dataclasses
import difflib
import math
import numbers
from collections.abc import Mapping

from ml_collections import config_dict

DURATION_UNITS = ('steps', 'tokens', 'examples', 'epochs', 'share')


@dataclasses.dataclass(frozen=True)
class Value:
  """What one key may hold.

  Attributes:
    default: the value a config starts with.
  """

  default: object

  def check(self, name: str, value):
    """`value` in the type of this key. Raises ValueError, which calls the key `name`, if it is not allowed."""
    raise NotImplementedError

  def example(self, value) -> str:
    """What to type after `KEY=` instead of a `value` that was refused."""
    return _typed(self.default)


@dataclasses.dataclass(frozen=True)
class Choice(Value):
  choices: tuple

  def check(self, name, value):
    if not any(value == choice and type(value) is type(choice) for choice in self.choices):
      raise ValueError(f'{name}={value!r} does not exist; choose one of {", ".join(map(str, self.choices))}')
    return value

  def example(self, value):
    near = difflib.get_close_matches(str(value), map(str, self.choices), n=1)
    return near[0] if near else str(self.choices[0])


@dataclasses.dataclass(frozen=True)
class Number(Value):
  kind: type
  at_least: float = -math.inf
  above: float = -math.inf
  at_most: float = math.inf
  below: float = math.inf

  def check(self, name, value):
    accepted, words = (numbers.Integral, 'a whole number') if self.kind is int else (numbers.Real, 'a number')
    if isinstance(value, bool) or not isinstance(value, accepted):
      raise _wrong_type(name, words, value)
    if not math.isfinite(value):
      raise _wrong_type(name, 'a finite number', value)
    if not (self.at_least <= value <= self.at_most and self.above < value < self.below):
      raise ValueError(f'{name}={value} must be {self._bounds()}')
    return self.kind(value)

  def _bounds(self):
    bounds = {'at least': self.at_least, 'above': self.above, 'at most': self.at_most, 'below': self.below}
    return ' and '.join(f'{words} {bound}' for words, bound in bounds.items() if math.isfinite(bound))


@dataclasses.dataclass(frozen=True)
class Flag(Value):
  def check(self, name, value):
    if not isinstance(value, bool):
      raise _wrong_type(name, 'True or False', value)
    return value


@dataclasses.dataclass(frozen=True)
class Text(Value):
  def check(self, name, value):
    if not isinstance(value, str):
      raise _wrong_type(name, 'a text', value)
    return value

  def example(self, value):
    return self.default or 'TEXT'


@dataclasses.dataclass(frozen=True)
class TupleOf(Value):
  entry: Value

  def check(self, name, value):
    if not isinstance(value, (tuple, list)):
      raise _wrong_type(name, 'a tuple', value)
    return tuple(self.entry.check(f'{name}[{i}]', entry) for i, entry in enumerate(value))

  def example(self, value):
    return _typed(self.default or (self.entry.default,))


@dataclasses.dataclass(frozen=True)
class PairOf(Value):
  entries: tuple[Value, Value]

  def check(self, name, value):
    if not isinstance(value, (tuple, list)) or len(value) != 2:
      raise _wrong_type(name, f'a pair such as {self.default}', value)
    return tuple(entry.check(f'{name}[{i}]', part) for i, (entry, part) in enumerate(zip(self.entries, value)))


@dataclasses.dataclass(frozen=True)
class OneOrMany(Value):
  entry: Value

  def check(self, name, value):
    several = isinstance(value, (tuple, list))
    return TupleOf((), self.entry).check(name, value) if several else self.entry.check(name, value)


@dataclasses.dataclass(frozen=True)
class Record(Value):
  """A mapping; its default, an example of one, has the keys that it must have, and `keys` all that it may have."""

  keys: Mapping[str, Value]

  def check(self, name, value):
    if not isinstance(value, Mapping):
      raise _wrong_type(name, f'a mapping such as {self.default}', value)
    if unknown := sorted(set(value) - set(self.keys)):
      raise ValueError(f'{name} has the unknown key {unknown[0]!r}; its keys are {", ".join(self.keys)}')
    if lacking := [key for key in self.default if key not in value]:
      raise ValueError(f'{name}={dict(value)} lacks {", ".join(lacking)}')
    return {key: self.keys[key].check(f'{name}.{key}', entry) for key, entry in value.items()}


@dataclasses.dataclass(frozen=True)
class Duration(Value):
  units: tuple[str, ...]
  at_least: int

  def check(self, name, value):
    if isinstance(value, (Mapping, config_dict.ConfigDict)):
      value = dict(value.items())
      if len(value) != 1 or next(iter(value)) not in self.units:
        raise ValueError(
          f'{name} takes steps, or a mapping with exactly one of the units {", ".join(self.units)}; got {value}'
        )
      [(unit, amount)] = value.items()
      return {unit: _amount(unit, self.at_least).check(f"{name}['{unit}']", amount)}
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
      raise _wrong_type(name, "a whole number of steps, or a mapping such as {'tokens': 1000000}", value)
    return _amount('steps', self.at_least).check(name, value)


def choice(default, *others) -> Value:
  """One of a few names or numbers."""
  return Choice(default, (default, *others))


def count(default: int, *, at_least: int = 0, at_most: float = math.inf) -> Value:
  """A whole number."""
  return Number(default, int, at_least=at_least, at_most=at_most)


def number(default: float, *, at_least: float = -math.inf, above: float = -math.inf, below: float = math.inf) -> Value:
  """A finite number; a whole one is converted."""
  return Number(default, float, at_least=at_least, above=above, below=below)


def flag(default: bool) -> Value:
  """True or False."""
  return Flag(default)


def text(default: str) -> Value:
  """Any text."""
  return Text(default)


def tuple_of(entry: Value, default: tuple = ()) -> Value:
  """A tuple whose entries are all what `entry` allows."""
  return TupleOf(default, entry)


def pair_of(first: Value, second: Value) -> Value:
  """A pair of what two values allow."""
  return PairOf((first.default, second.default), (first, second))


def one_or_many(entry: Value) -> Value:
  """What `entry` allows, or a tuple of it."""
  return OneOrMany(entry.default, entry)


def record(example: dict, **keys: Value) -> Value:
  """A mapping with some of `keys`; those in `example` must be there."""
  return Record(example, keys)


def duration(default, *, share: bool = True, at_least: int = 0) -> Value:
  """A number of steps, or a mapping with one of `DURATION_UNITS`.

  Args:
    default: such as 100 or {'epochs': 3}.
    share: whether `{'share': x}` of the run is one of the units.
    at_least: 0, or 1 for what must be longer than nothing.
  """
  return Duration(default, DURATION_UNITS if share else DURATION_UNITS[:-1], at_least)


class Group(config_dict.ConfigDict):
  """Keys that were declared, each with what it may hold; other keys do not exist, locked or not.

  A group inside a group is assigned as a whole only from one that has the same keys; one of its keys is set by
  `group.inner.key = value`, `group['inner.key'] = value` or `group.update({'inner.key': value})`.
  """

  def __init__(self, name: str = '', moved: Mapping[str, str] | None = None):
    """Makes a group without keys.

    Args:
      name: path of the group in the config, such as 'model.attention'; '' for the config itself.
      moved: new paths by old ones, for the answer to somebody who types an old one.
    """
    super().__init__()
    for attribute, value in {'_name': name, '_moved': moved or {}, '_declared': {}}.items():
      object.__setattr__(self, attribute, value)

  def __setitem__(self, key, value):
    head, _, rest = key.partition('.')
    name = f'{self._name}.{key}' if self._name else key
    if rest and isinstance(self._fields.get(head), Group):
      self._fields[head][rest] = value
    elif key in self._declared:
      self._assign(key, name, value)
    elif key in self._fields:
      self._assign_group(key, name, value)
    elif isinstance(value, Value) and not self.is_locked:
      self._declared[key] = value
      self._assign(key, name, value.default)
    elif isinstance(value, Group) and not self.is_locked:
      self._fields[key] = value
    else:
      raise AttributeError(self._unknown(name, key))

  def copy_and_resolve_references(self, visit_map=None):
    """A copy that has values where the group has references."""
    copy = Group(self._name, self._moved)
    copy._declared.update(self._declared)
    for key, value in self.items():
      copy._fields[key] = value.copy_and_resolve_references() if isinstance(value, Group) else value
    return copy.lock() if self.is_locked else copy

  def __setstate__(self, state):
    for attribute, value in state.items():
      object.__setattr__(self, attribute, value)

  def _assign(self, key, name, value):
    current = self._fields.get(key)
    given = value.get() if isinstance(value, config_dict.FieldReference) else value
    try:
      checked = self._declared[key].check(name, given)
    except ValueError as error:
      raise ValueError(f'{error}; for example --config.{name}={self._declared[key].example(given)}') from None
    if isinstance(current, config_dict.FieldReference):
      current.set(value)
    else:
      self._fields[key] = value if isinstance(value, config_dict.FieldReference) else checked

  def _assign_group(self, key, name, value):
    group = self[key]
    if not isinstance(value, (Mapping, config_dict.ConfigDict)) or set(value) != set(group):
      raise ValueError(
        f'{name} is a group; set one of its keys {", ".join(group)}, for example '
        f'--config.{name}.{next(iter(group))}=VALUE'
      )
    if value is not group:
      group.update(value)

  def _unknown(self, name, key):
    if name in self._moved:
      return f'unknown key {name!r}: it is {self._moved[name]!r} now'
    near = difflib.get_close_matches(str(key), list(self), n=1)
    hint = f'; did you mean {name.removesuffix(key)}{near[0]}?' if near else ''
    where = f'group {self._name!r}' if self._name else 'the config'
    return f'unknown key {name!r}{hint}; {where} has {", ".join(self)}'


def declared(config: Group) -> dict[str, Value]:
  """What each key of a config may hold, by path such as 'model.attention.window'."""
  found = {f'{config._name}.{key}' if config._name else key: value for key, value in config._declared.items()}
  for value in config.values():
    found |= declared(value) if isinstance(value, Group) else {}
  return found


def _amount(unit, at_least):
  """What the number of a duration in `unit` may be; of a real unit, `at_least` 1 means any above 0."""
  if unit in ('epochs', 'share'):
    bounds = {'above': 0} if at_least else {'at_least': 0}
    return Number(1.0, float, at_most=1 if unit == 'share' else math.inf, **bounds)
  return Number(1, int, at_least=at_least)


def _wrong_type(name, words, value):
  return ValueError(f'{name} takes {words}; got {value!r}')


def _typed(value) -> str:
  """A value as typed in a shell."""
  return f'"{value}"' if isinstance(value, (tuple, dict)) else str(value)
