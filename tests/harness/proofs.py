"""Expensive tests that need not run again while nothing that they depend on has changed.

`@pytest.mark.proof(*paths, built_with=())` marks them; see tests/README.md.
"""

import ast
import collections
import functools
import hashlib
import importlib.metadata
import json
import pathlib

import pytest


def _module_file(root: pathlib.Path, name: str) -> pathlib.Path | None:
  for folder in (root, root / 'tests'):  # as pythonpath has it
    path = folder.joinpath(*name.split('.'))
    for file in (path.with_suffix('.py'), path / '__init__.py'):
      if file.is_file():
        return file
  return None


@functools.cache
def _imports(root: pathlib.Path, file: pathlib.Path) -> frozenset[pathlib.Path]:
  """Files of the repository that `file` imports, anywhere in it."""
  names = set()
  package = file.parent.relative_to(root).parts
  for node in ast.walk(ast.parse(file.read_text(encoding='utf-8'))):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      base = '.'.join([*(package[: len(package) - node.level + 1] if node.level else ()), node.module or '']).strip('.')
      names |= {base} | {f'{base}.{alias.name}' for alias in node.names}
  parents = {name.rsplit('.', cut)[0] for name in names for cut in range(name.count('.') + 1)}
  return frozenset(found for name in parents if (found := _module_file(root, name)))


def dependencies(root: pathlib.Path, file: pathlib.Path, paths: tuple[str, ...] = ()) -> list[pathlib.Path]:
  """What the outcome of a test file depends on in the repository.

  Args:
    root: of the repository.
    file: of the tests.
    paths: files and folders, relative to the root, that it reads or runs without importing them.

  Returns the file itself, the conftest.py files that apply to it, `paths`, and everything that any of them imports,
  directly or not, in functions too.

  Raises FileNotFoundError for a path that is not there.
  """
  open_files = [
    file,
    *(
      folder / 'conftest.py'
      for folder in file.parents
      if folder.is_relative_to(root) and (folder / 'conftest.py').is_file()
    ),
  ]
  for path in paths:
    if not (root / path).exists():
      raise FileNotFoundError(f'{file.relative_to(root)}: pytest.mark.proof names {path}, which is not there')
    open_files += [root / path] if (root / path).is_file() else sorted((root / path).rglob('*.*'))
  found = set()
  while open_files:
    file = open_files.pop()
    if file not in found and file.is_file() and '__pycache__' not in file.parts:
      found.add(file)
      open_files += _imports(root, file) if file.suffix == '.py' else ()
  return sorted(found)


@functools.cache
def content_hash(root: pathlib.Path, file: pathlib.Path, paths: tuple[str, ...] = ()) -> str:
  """Returns a hash of the names and contents of all `dependencies`, 16 hexadecimal digits."""
  digest = hashlib.sha256()
  for dependency in dependencies(root, file, paths):
    content = dependency.read_bytes()
    digest.update(f'{dependency.relative_to(root).as_posix()} {len(content)}\n'.encode() + content)
  return digest.hexdigest()[:16]


def environment(built_with: tuple[str, ...]) -> str | None:
  """Versions of jax and of the packages `built_with`; None if one is not installed."""
  try:
    return ', '.join(f'{name} {importlib.metadata.version(name)}' for name in ('jax', *built_with))
  except importlib.metadata.PackageNotFoundError:
    return None


def pytest_addoption(parser):
  group = parser.getgroup('proofs')
  group.addoption('--all-proofs', action='store_true', help='run proofs whose dependencies did not change, too')
  group.addoption('--record-proofs', action='store_true', help='write the proofs that pass into the file of proofs')
  parser.addini('proofs', 'file of recorded proofs, relative to the root', default='tests/proofs.json')


def _file(config) -> pathlib.Path:
  return config.rootpath / config.getini('proofs')


def _recorded(config) -> dict[str, dict[str, str]]:
  return json.loads(_file(config).read_text()) if _file(config).exists() else {}


def pytest_configure(config):
  config.addinivalue_line('markers', 'proof(*paths, built_with=()): expensive; skipped while recorded and unchanged')


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
  recorded = _recorded(config)
  for item in items:
    mark = item.get_closest_marker('proof')
    if mark is None:
      continue
    versions = environment(tuple(mark.kwargs.get('built_with', ())))
    now = content_hash(config.rootpath, item.path, mark.args)
    if versions is not None:
      item.user_properties.append(('proof', [versions, now]))
    if recorded.get(item.nodeid, {}).get(versions) == now and not config.getoption('all_proofs'):
      item.add_marker(pytest.mark.skip(reason=f'unchanged since it passed (hash {now}, {versions})'))


def _proof(report):
  return dict(getattr(report, 'user_properties', ())).get('proof')


def pytest_terminal_summary(terminalreporter, config):
  skipped = collections.Counter()
  for report in terminalreporter.stats.get('skipped', []):
    if _proof(report) and 'unchanged since it passed' in str(report.longrepr):
      skipped[report.nodeid.split('::')[0], *_proof(report)] += 1
  if skipped:
    terminalreporter.section('proofs')
    for (file, versions, now), count in sorted(skipped.items()):
      terminalreporter.line(f'{file}: {count} skipped, unchanged since they passed (hash {now}, {versions})')
    terminalreporter.line('They run again when what they import changes, and with --all-proofs (make test-all).')
  if config.getoption('record_proofs'):
    _record(terminalreporter, config)


def _record(terminalreporter, config):
  """Adds what passed to the file of proofs; what is there of the same file and versions with another hash goes."""
  failed = {report.nodeid for key in ('failed', 'error') for report in terminalreporter.stats.get(key, [])}
  passed = [
    report
    for report in terminalreporter.stats.get('passed', [])
    if report.when == 'call' and _proof(report) and report.nodeid not in failed
  ]
  recorded = _recorded(config)
  current = collections.defaultdict(set)
  for report in passed:
    versions, now = _proof(report)
    recorded.setdefault(report.nodeid, {})[versions] = now
    current[report.nodeid.split('::')[0], versions].add(now)
  kept = {}
  for test in sorted(recorded):
    file = test.split('::')[0]
    hashes = {
      versions: value
      for versions, value in sorted(recorded[test].items())
      if value in current.get((file, versions), {value})
    }
    if hashes and (config.rootpath / file).exists():
      kept[test] = hashes
  _file(config).write_text(json.dumps(kept, indent=1, ensure_ascii=False) + '\n')
  terminalreporter.line(f'{len(passed)} proofs recorded in {config.getini("proofs")}')
