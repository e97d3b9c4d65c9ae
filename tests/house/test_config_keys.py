"""Every config key is read somewhere, and every key that is read exists.

The walk relies on names: the whole config is called `config`, a group of it `<group>_config` by the last part of its
path, a model's `config` is the group `model`.
"""

import ast
import pathlib
import re

import pytest
from ml_collections import config_dict

from configs import base

ROOT = pathlib.Path(__file__).resolve().parents[2]
NOT_READERS = {'tests', 'configs', 'notebooks', 'scripts', 'build', 'dist', 'runs'}


def keys(config, path='') -> dict[str, set[str]]:
  """The keys of every group by its path; '' is the config itself."""
  found = {path: set(config)}
  for name, value in config.items():
    if isinstance(value, config_dict.ConfigDict):
      found |= keys(value, f'{path}.{name}' if path else name)
  return found


def group_of(node: ast.AST, in_model: bool, groups) -> str | None:
  """The path of the group that an expression stands for ('' = the whole config), or None."""
  if isinstance(node, ast.Name):
    if node.id == 'config':
      return ''
    named = [path for path in groups if node.id == f'{path.rsplit(".")[-1]}_config']
    return min(named, key=len) if named else None
  if not isinstance(node, ast.Attribute):
    return None
  if node.attr == 'config':
    owner = getattr(node.value, 'id', getattr(node.value, 'attr', ''))
    if owner == 'jax':
      return None
    return 'model' if owner == 'model' or (owner == 'self' and in_model) else ''
  outer = group_of(node.value, in_model, groups)
  path = f'{outer}.{node.attr}' if outer else node.attr
  return path if outer is not None and path in groups else None


def uses(root: pathlib.Path, config) -> tuple[set[str], list[str]]:
  """The keys that code reads, and the places that name a key that does not exist."""
  groups, read, unknown = keys(config), set(), []
  for file in sorted(root.rglob('*.py')):
    place = file.relative_to(root)
    if place.parts[0] in NOT_READERS or place.parts[0].startswith('.'):
      continue
    for node in ast.walk(ast.parse(file.read_text())):
      if not isinstance(node, ast.Attribute):
        continue
      group = group_of(node.value, place.parts[0] == 'model', groups)
      # Methods of a config, or of the text of a flag --config.
      if group is None or hasattr(config_dict.ConfigDict, node.attr) or hasattr(str, node.attr):
        continue
      name = f'{group}.{node.attr}' if group else node.attr
      if node.attr not in groups[group]:
        unknown.append(f'{place}:{node.lineno} reads {name}')
      elif isinstance(node.ctx, ast.Load) and place.parts[0] != 'benchmarks':
        read.add(name)
  return read, unknown


def all_keys(config) -> set[str]:
  groups = keys(config)
  paths = {f'{group}.{key}' if group else key for group in groups for key in groups[group]}
  return paths - set(groups)


def test_every_key_is_read_somewhere():
  config = base.get_config()
  unread = all_keys(config) - uses(ROOT, config)[0]
  assert not unread, f'configs/base.py promises what nothing reads: {", ".join(sorted(unread))}'


def test_every_key_that_is_read_exists():
  assert not uses(ROOT, base.get_config())[1]


def test_every_key_says_what_it_means():
  text = (ROOT / 'configs' / 'base.py').read_text()
  text = re.sub(
    r'\n\s+(?=\))', '', re.sub(r'(?<=[(,])\n\s+', ' ', text)
  )  # a key on several lines has its comment at the end
  for line in text.splitlines():
    if re.match(r'  \w+\.\w+ = (?!_)', line):
      assert re.search(r'  # \S', line), f'configs/base.py: no comment with unit and meaning: {line}'


@pytest.mark.parametrize(
  'file, code, read, unknown',
  [
    ('training/x.py', 'f(config.model.norm, config.seed)', {'model.norm', 'seed'}, []),
    ('training/x.py', 'f(self.config.train.steps)', {'train.steps'}, []),
    ('training/x.py', 'f(run.config.data.path.strip())', {'data.path'}, []),
    ('model/x.py', 'f(self.config.norm, model_config.init)', {'model.norm', 'model.init'}, []),
    ('inference/x.py', 'f(model.config.norm, run.model.config.init)', {'model.norm', 'model.init'}, []),
    ('model/x.py', 'f(model_config.attention.qk_norm)', {'model.attention.qk_norm'}, []),
    (
      'model/x.py',
      'f(attention_config.qk_norm, self.config.attention.dropout_rate)',
      {'model.attention.qk_norm', 'model.attention.dropout_rate'},
      [],
    ),
    ('model/x.py', 'f(model_config.attention)', set(), []),
    ('training/x.py', 'config.model.norm = 3', set(), []),
    ('training/x.py', 'jax.config.update(1); config.lock(); flags.config.strip(); file.mesh_config_text', set(), []),
    ('benchmarks/x.py', 'f(config.model.norm)', set(), []),
    ('training/x.py', 'f(config.model.nrm)', set(), ['training/x.py:1 reads model.nrm']),
    ('model/x.py', 'f(model_config.attention.qk_nrm)', set(), ['model/x.py:1 reads model.attention.qk_nrm']),
    ('model/x.py', 'f(model_config.qk_norm)', set(), ['model/x.py:1 reads model.qk_norm']),
    ('training/x.py', 'f(config.modle.norm)', set(), ['training/x.py:1 reads modle']),
    ('data/x.py', 'f(data_config.norm)', set(), ['data/x.py:1 reads data.norm']),
    ('benchmarks/x.py', 'config.model.nrm = 3', set(), ['benchmarks/x.py:1 reads model.nrm']),
  ],
)
def test_the_walk_finds_keys(tmp_path, file, code, read, unknown):
  (tmp_path / file).parent.mkdir(parents=True)
  (tmp_path / file).write_text(code)
  found, strange = uses(tmp_path, base.get_config())
  assert found - set(keys(base.get_config())) == read and strange == unknown
