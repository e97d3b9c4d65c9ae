"""The files of configs/ where ml_collections is not installed, as on a machine that has only what computes."""

import contextlib
import copy
import importlib
import importlib.util
import sys
import types


class ConfigDict(dict):
  """What configs/ and model/ use of ml_collections.ConfigDict: keys as attributes, without locks and types."""

  def __getattr__(self, key):
    if key not in self:
      raise AttributeError(key)
    return self[key]

  def __setattr__(self, key, value):
    self[key] = getattr(value, 'default', value)  # of a key that configs/base.py declares

  def lock(self):
    return self

  unlock = lock

  @contextlib.contextmanager
  def unlocked(self):
    yield self

  def copy_and_resolve_references(self):
    return copy.deepcopy(self)


def load(name: str, variant: str = ''):
  """The config that `configs/NAME.py` gives for a variant, unlocked; plain where ml_collections is missing."""
  if 'ml_collections' not in sys.modules and importlib.util.find_spec('ml_collections') is None:
    config_dict = types.ModuleType('ml_collections.config_dict')
    config_dict.ConfigDict = ConfigDict
    package = types.ModuleType('ml_collections')
    package.config_dict = config_dict
    sys.modules |= {'ml_collections': package, 'ml_collections.config_dict': config_dict}
    importlib.import_module('configs.values').Group = lambda name, moved: ConfigDict()
  return importlib.import_module(f'configs.{name}').get_config(variant).unlock()
