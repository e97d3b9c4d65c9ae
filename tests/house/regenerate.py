"""Writes golden/*.json, the fully resolved text of every config that a docstring in configs/ names.

python -m tests.house.regenerate
"""

import ast
import json
import pathlib
import re

from training import configs

ROOT = pathlib.Path(__file__).resolve().parents[2]
GOLDEN = pathlib.Path(__file__).with_name('golden')


def experiments() -> dict[str, str]:
  """Docstring by file in configs/."""
  return {
    f'configs/{file.name}': ast.get_docstring(ast.parse(file.read_text())) or ''
    for file in sorted((ROOT / 'configs').glob('*.py'))
    if 'def get_config' in file.read_text()
  }


def paths() -> list[str]:
  """Every file in configs/, alone and with each variant that its docstring names."""
  named = {
    path
    for file, docstring in experiments().items()
    for path in (file, *re.findall(rf'{re.escape(file)}:\w+', docstring))
  }
  return sorted(named)


def golden_file(path: str) -> pathlib.Path:
  return GOLDEN / f'{path.removeprefix("configs/").replace(".py", "").replace(":", "-")}.json'


def resolved(path: str) -> str:
  return json.dumps(configs.to_json(configs.load(path)), indent=2) + '\n'


def main():
  GOLDEN.mkdir(exist_ok=True)
  for file in GOLDEN.glob('*.json'):
    file.unlink()
  for path in paths():
    golden_file(path).write_text(resolved(path))


if __name__ == '__main__':
  main()
