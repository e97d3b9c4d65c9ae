"""Layers with a sliding window in a config.json."""

from interop.fields import Field, refused

_KINDS = {'full_attention': 'global', 'sliding_attention': 'local'}


def pattern(kinds: list[str]) -> tuple[str, ...]:
  """The shortest pattern of 'global' and 'local' that, repeated from the first layer on, gives these layers."""
  sizes = range(1, len(kinds) + 1)
  return next(tuple(kinds[:n]) for n in sizes if all(kind == kinds[i % n] for i, kind in enumerate(kinds)))


def in_every_layer(window: str, default: int | None) -> Field:
  """A window of all layers alike; null: none."""

  def read(values):
    tokens = values.get(window, default)
    return {'attention.window': tokens or 0, 'attention.pattern': ('local',) if tokens else ('global',)}

  return Field((window,), read, lambda model: {window: model['attention.window'] or None})


def by_layer(usual, names: tuple[str, ...], default_window: int, switch: str | None = None) -> Field:
  """A window of the layers that `layer_types` names.

  Args:
    usual: `usual(values, num_layers) -> kinds` ('full_attention', 'sliding_attention') where the config has no list.
    names: of the fields that it reads.
    default_window: what a config without `sliding_window` means.
    switch: a flag without which there is no window; False by default.
  """
  names = tuple(name for name in (*names, switch, 'layer_types', 'sliding_window', 'num_hidden_layers') if name)

  def read(values):
    count = values.get('num_hidden_layers', 0)
    kinds = values.get('layer_types') or usual(values, count)
    for kind in kinds:
      if kind not in _KINDS:
        raise refused('layer_types', kind, ' or '.join(_KINDS))
    if len(kinds) != count:
      raise refused('layer_types', kinds, f'one for each of the {count} layers (num_hidden_layers)')
    found = pattern([_KINDS[kind] for kind in kinds])
    if 'local' not in found:
      return {'attention.window': 0, 'attention.pattern': found}
    if switch and not values.get(switch, False):
      raise refused(switch, values.get(switch, False), 'True, since layer_types has sliding_attention')
    if not (window := values.get('sliding_window', default_window)):
      raise refused('sliding_window', window, 'a number of tokens, since layer_types has sliding_attention')
    return {'attention.window': window, 'attention.pattern': found}

  def write(model):
    theirs, ours = {name: kind for kind, name in _KINDS.items()}, model['attention.pattern']
    kinds = [theirs[ours[i % len(ours)]] for i in range(model['num_layers'])]
    window = model['attention.window'] or None
    written = {'num_hidden_layers': len(kinds), 'layer_types': kinds, 'sliding_window': window}
    return written | ({switch: window is not None} if switch else {})

  return Field(names, read, write)
