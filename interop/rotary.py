"""Rotary positions in a config.json: `rope_parameters`, or `rope_theta` and `rope_scaling` of older ones."""

from interop.fields import Field, FieldError, refused

_LENGTH = 'max_position_embeddings'
# Keys of ours by the entries of each type, with what a missing entry means; None: it must be there.
_FACTOR = {'factor': ('rope.factor', None)}
_TYPES = {
  'default': {},
  'linear': _FACTOR,
  'dynamic': _FACTOR | {'original_max_position_embeddings': ('rope.original_length', _LENGTH)},
  'yarn': _FACTOR
  | {
    'original_max_position_embeddings': ('rope.original_length', _LENGTH),
    'beta_fast': ('rope.beta_fast', 32.0),
    'beta_slow': ('rope.beta_slow', 1.0),
    'attention_factor': ('rope.attention_factor', 0.0),
    'mscale': ('rope.mscale', 0.0),
    'mscale_all_dim': ('rope.mscale_all_dim', 0.0),
    'truncate': ('rope.truncate', True),
  },
  'llama3': _FACTOR
  | {
    'original_max_position_embeddings': ('rope.original_length', _LENGTH),
    'low_freq_factor': ('rope.low_freq_factor', None),
    'high_freq_factor': ('rope.high_freq_factor', None),
  },
}
_OURS = {name: 'none' if name == 'default' else name for name in _TYPES}


def rotary(
  theta: str = 'rope_theta',
  fraction: str = 'partial_rotary_factor',
  default_fraction: float = 1.0,
  default_theta: float = 10000.0,
) -> Field:
  """The fields of rotary positions that are the same in every layer.

  Args:
    theta: name of the base of the wavelengths where it stands alone.
    fraction: name of the share of a head that is rotated where it stands alone.
    default_fraction: what its absence means.
    default_theta: what the absence of the base means.
  """

  def read(values):
    entries = values.get('rope_parameters') or values.get('rope_scaling') or {}
    where = 'rope_parameters' if values.get('rope_parameters') else 'rope_scaling'
    ours = read_entries(entries, where, values.get(theta, default_theta), values.get(_LENGTH, 0))
    share = entries.get('partial_rotary_factor', values.get(fraction, default_fraction))
    return ours | {'rope.fraction': float(share)}

  def write(model):
    scaling, length = write_entries(model)
    written = {theta: model['rope.theta']} | ({'rope_scaling': scaling} if scaling else {}) | length
    return written | ({fraction: model['rope.fraction']} if model['rope.fraction'] != default_fraction else {})

  return Field(('rope_parameters', 'rope_scaling', theta, fraction, _LENGTH), read, write)


def read_entries(entries: dict, where: str, theta: float, length: int) -> dict:
  """Our keys of one `rope_parameters` or `rope_scaling`.

  Args:
    entries: the mapping.
    where: its name, for errors.
    theta: what it means where the mapping has none.
    length: `max_position_embeddings` beside it.

  Raises:
    FieldError: a type or an entry that cannot be honoured.
  """
  kind = entries.get('rope_type', entries.get('type', 'default'))
  if kind not in _TYPES:
    raise refused(f'{where}.rope_type', kind, ', '.join(_TYPES))
  known = _TYPES[kind]
  ours = {'rope.theta': float(entries.get('rope_theta') or theta), 'rope.scaling': _OURS[kind]}
  for name, value in entries.items():
    if (
      name not in known
      and name not in ('rope_type', 'type', 'rope_theta', 'partial_rotary_factor')
      and value is not None
    ):
      raise refused(f'{where}.{name}', value, f'for the type {kind!r} only {", ".join(known) or "none of that name"}')
  for name, (key, default) in known.items():
    value = entries.get(name)
    if value is None:
      if default is None:
        raise FieldError(f'{where} of the type {kind!r} lacks {name}')
      value = length if default == _LENGTH else default
    ours[key] = value
  # transformers takes the length of the config here, whatever stands among the entries.
  if kind == 'dynamic' and ours['rope.original_length'] != length:
    raise refused(f'{where}.original_max_position_embeddings', ours['rope.original_length'], f'{_LENGTH}, {length}')
  return ours


def write_entries(model: dict) -> tuple[dict, dict]:
  """The `rope_scaling` of our keys, {} for none, and `max_position_embeddings` where the type reads it."""
  kind = next(name for name, ours in _OURS.items() if ours == model['rope.scaling'])
  if kind == 'default':
    return {}, {}
  entries = {name: model[key] for name, (key, _) in _TYPES[kind].items()}
  scaling = {'rope_type': kind} | {name: value for name, value in entries.items() if value or name == 'truncate'}
  return scaling, {_LENGTH: model['rope.original_length']} if kind == 'dynamic' else {}
