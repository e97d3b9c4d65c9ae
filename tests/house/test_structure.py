"""The house of DESIGN.md: imports point down, mesh axes stay in two rooms, entry points stay thin."""

import ast
import pathlib
import re
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
# What a room may import besides the standard library and itself; `parallel.axes` is one module of a room.
MAY_IMPORT = {
  'configs': {'ml_collections'},
  'data': {'numpy', 'grain', 'sentencepiece', 'tokenizers', 'datasets', 'pyarrow'},
  'inference': {'jax', 'numpy', 'model'},
  'interop': {'jax', 'numpy', 'safetensors', 'sentencepiece', 'tokenizers', 'configs', 'data', 'model'},
  'model': {'jax', 'numpy', 'flax', 'pallas_kernels', 'parallel.axes'},
  'objectives': {'jax', 'numpy', 'model', 'parallel.axes'},
  'pallas_kernels': {'jax', 'numpy'},
  'parallel': {'jax', 'numpy'},
  'planning': {
    'jax',
    'numpy',
    'data',
    'model',
    'objectives',
    'pallas_kernels',
    'parallel',
    'precision',
    'scaling',
    'training',
  },
  'precision': {'jax', 'numpy'},
  'scaling': {'numpy', 'scipy', 'matplotlib'},
  'training': {
    'jax',
    'numpy',
    'optax',
    'orbax',
    'matplotlib',
    'ml_collections',
    'rich',
    'tensorboardX',
    'tensorstore',
    'data',
    'model',
    'objectives',
    'parallel',
    'precision',
    'scaling',
  },
}
NOT_ROOMS = {'tests', 'benchmarks', 'notebooks', 'scripts', 'build', 'dist', 'runs'}
MESH_AXES = {'data', 'fsdp', 'tensor', 'sequence', 'pipeline', 'expert'}


def python_files(folder: pathlib.Path) -> list[pathlib.Path]:
  return sorted(file for file in folder.rglob('*.py') if '__pycache__' not in file.parts)


def rooms(root: pathlib.Path) -> list[pathlib.Path]:
  return sorted(
    folder
    for folder in root.iterdir()
    if folder.is_dir() and not folder.name.startswith('.') and folder.name not in NOT_ROOMS and python_files(folder)
  )


def imported(tree: ast.AST) -> set[str]:
  """Dotted names that a module imports anywhere, as deep as the import statement tells."""
  names = set()
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom) and node.level == 0:
      names |= {f'{node.module}.{alias.name}' for alias in node.names}
  return names


def forbidden_imports(root: pathlib.Path) -> list[str]:
  found = []
  for room in rooms(root):
    allowed = MAY_IMPORT.get(room.name, set()) | {room.name}
    for file in python_files(room):
      for name in imported(ast.parse(file.read_text())):
        prefixes = {name.rsplit('.', cut)[0] for cut in range(name.count('.') + 1)}
        if not prefixes & (allowed | sys.stdlib_module_names):
          found.append(f'{file.relative_to(root)} imports {name}')
  return found


def stray_mesh_axes(root: pathlib.Path) -> list[str]:
  found = []
  for file in python_files(root):
    room = file.relative_to(root).parts[0]
    if room in {'parallel', 'configs'} | NOT_ROOMS or room.startswith('.'):
      continue
    # `data` is also an English word; only where jax is in the room can it be an axis.
    names = MESH_AXES if 'jax' in MAY_IMPORT.get(room, ()) else MESH_AXES - {'data'}
    found += [
      f'{file.relative_to(root)}:{node.lineno} names the mesh axis {node.value!r}'
      for node in ast.walk(ast.parse(file.read_text()))
      if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in names
    ]
  return found


def test_imports_point_down():
  assert not forbidden_imports(ROOT)


def test_every_room_has_a_rule():
  assert {room.name for room in rooms(ROOT)} <= set(MAY_IMPORT), 'say in MAY_IMPORT what the new room may import'


def test_mesh_axes_are_named_in_parallel_and_configs_only():
  assert not stray_mesh_axes(ROOT)


def test_entry_points_parse_flags_and_call_one_function():
  for file in ROOT.glob('*.py'):
    assert len(file.read_text().splitlines()) < 150, f'{file.name} has 150 lines or more; move code into a room'


@pytest.mark.parametrize(
  'file, code, finds, said',
  [
    ('model/x.py', 'from training import loop', forbidden_imports, 'model/x.py imports training.loop'),
    ('model/x.py', 'from parallel import rules', forbidden_imports, 'model/x.py imports parallel.rules'),
    ('data/x.py', 'def f():\n  import jax.numpy as jnp', forbidden_imports, 'data/x.py imports jax.numpy'),
    ('pallas_kernels/sub/x.py', 'import model', forbidden_imports, 'pallas_kernels/sub/x.py imports model'),
    ('configs/x.py', 'import numpy', forbidden_imports, 'configs/x.py imports numpy'),
    ('model/x.py', "axis = 'data'", stray_mesh_axes, "model/x.py:1 names the mesh axis 'data'"),
    ('train.py', "axis = ('fsdp',)", stray_mesh_axes, "train.py:1 names the mesh axis 'fsdp'"),
  ],
)
def test_a_house_with_a_defect_is_found_out(tmp_path, file, code, finds, said):
  (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
  (tmp_path / file).write_text(code)
  assert finds(tmp_path) == [said]


@pytest.mark.parametrize(
  'file, code',
  [
    ('model/x.py', 'import functools\nimport jax.numpy as jnp\nfrom parallel import axes as ax'),
    ('model/x.py', 'from model import layers'),
    ('model/x.py', 'from parallel.axes import constrain'),
    ('data/x.py', "key = {'data': 1}\nfrom collections import abc"),
    ('parallel/x.py', "axis = 'data'"),
  ],
)
def test_a_sound_house_passes(tmp_path, file, code):
  (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
  (tmp_path / file).write_text(code)
  assert not forbidden_imports(tmp_path) + stray_mesh_axes(tmp_path)


def test_the_reading_list_tells_its_length():
  rows = re.findall(r'\| \d+ \| \[(\S+)\]\(\.\./\S+\) \| (\d+) \|', (ROOT / 'docs' / 'architecture.md').read_text())
  lengths = {file: len((ROOT / file).read_text().splitlines()) for file, _ in rows}
  assert len(rows) >= 10 and sum(lengths.values()) < 1500, (
    f'a training step takes {sum(lengths.values())} lines to read'
  )
  told = sum(int(length) for _, length in rows)
  assert abs(told - sum(lengths.values())) < 100, f'correct docs/architecture.md: {lengths}'


def test_the_table_of_families_is_the_measured_one():
  table = (ROOT / 'benchmarks/results/families.md').read_text().split('\n\n')[2]
  assert f'<!-- families -->\n{table}\n<!-- -->' in (ROOT / 'README.md').read_text()
