"""Proofs that are skipped, recorded and run again; budgets of time; what is kept of the caches."""

import itertools
import json
import os
import pathlib
import subprocess
import sys

import pytest
from harness import budgets, cache, covering, proofs

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROOF = """
import pytest
import room
from helpers import lists
from room import used

@pytest.mark.proof('table.txt')
@pytest.mark.parametrize('n', [1, 2])
def test_dear(n):
  from room.late import value
  print('DEAR', 'RAN')
  assert used.value + n < 3 + value

def test_cheap():
  print('CHEAP', 'RAN')
"""


@pytest.fixture
def repository(tmp_path):
  files = {
    'room/__init__.py': '',
    'room/used.py': 'from room import deep\nvalue = 0',
    'room/deep.py': 'x = 1',
    'room/late.py': 'value = 0',
    'room/unused.py': '',
    'table.txt': '1',
    'tests/helpers/lists.py': '',
    'tests/room/test_proof.py': PROOF,
    'tests/conftest.py': '',
    'pytest.ini': '[pytest]\npythonpath = . tests\naddopts = --import-mode=importlib\n',
  }
  for name, text in files.items():
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(text)
  return tmp_path


@pytest.fixture
def dear_runs(repository):
  """Runs the tests of the repository with some options: (number of dear tests that ran, what was printed)."""

  def run(*options, status=0):
    environment = {key: value for key, value in os.environ.items() if not key.startswith('PYTEST')}
    environment |= {
      'PYTHONPATH': str(ROOT / 'tests'),
      'PYTHONDONTWRITEBYTECODE': '1',
      'PYTEST_DISABLE_PLUGIN_AUTOLOAD': '1',
    }
    result = subprocess.run(
      [sys.executable, '-m', 'pytest', '-p', 'harness.proofs', '-s', *options],
      cwd=repository,
      env=environment,
      capture_output=True,
      text=True,
    )
    assert result.returncode == status and result.stdout.count('CHEAP RAN') == 1, result.stdout
    return result.stdout.count('DEAR RAN'), result.stdout

  return run


def test_what_a_proof_depends_on_is_itself_and_all_that_is_imported_even_late(repository):
  found = proofs.dependencies(repository, repository / 'tests/room/test_proof.py', ('table.txt',))
  assert {str(path.relative_to(repository)) for path in found} == {
    'tests/room/test_proof.py',
    'tests/conftest.py',
    'table.txt',
    'room/__init__.py',
    'room/used.py',
    'room/deep.py',
    'room/late.py',
    'tests/helpers/lists.py',
  }
  with pytest.raises(FileNotFoundError, match='test_proof.py: pytest.mark.proof names nowhere.txt'):
    proofs.dependencies(repository, repository / 'tests/room/test_proof.py', ('nowhere.txt',))


def test_a_recorded_proof_is_skipped_until_something_it_depends_on_changes(repository, dear_runs):
  assert dear_runs()[0] == 2
  assert dear_runs('--record-proofs')[0] == 2  # passing alone recorded nothing
  ran, printed = dear_runs('-rs')
  assert ran == 0 and 'unchanged since it passed (hash ' in printed
  assert 'tests/room/test_proof.py: 2 skipped, unchanged since they passed' in printed
  assert dear_runs('--all-proofs')[0] == 2
  (repository / 'room/unused.py').write_text('changed = True')
  assert dear_runs()[0] == 0
  (repository / 'room/deep.py').write_text('x = 2')
  assert dear_runs()[0] == 2
  (repository / 'room/deep.py').write_text('x = 1')
  record = repository / 'tests/proofs.json'
  record.write_text(record.read_text().replace('"jax ', '"jax 0.'))
  assert dear_runs()[0] == 2, 'another jax proves nothing'


def test_a_proof_that_fails_is_not_recorded_and_those_of_older_contents_go(repository, dear_runs):
  dear_runs('--record-proofs')
  (repository / 'room/used.py').write_text('value = 1')
  assert dear_runs('--record-proofs', status=1)[0] == 2
  recorded = json.loads((repository / 'tests/proofs.json').read_text())
  assert list(recorded) == ['tests/room/test_proof.py::test_dear[1]']
  assert dear_runs(status=1)[0] == 1


def test_every_room_of_tests_has_a_budget_and_no_other_has():
  rooms = {file.relative_to(ROOT / 'tests').parts[0] for file in (ROOT / 'tests').glob('*/**/test_*.py')}
  assert budgets.read_budgets((ROOT / 'tests/README.md').read_text()).keys() == rooms


def test_costs_are_added_up_by_room_and_a_room_over_its_budget_or_without_one_is_told():
  costs = {
    'tests/a/test_x.py::test_one': 3.0,
    'tests/a/b/test_y.py::test_two[a::b]': 4.5,
    'tests/c/test_z.py::test': 2.0,
    'tests/new/test_z.py::test': 0.1,
  }
  lines = budgets.summary(costs, budgets.read_budgets('x\n| `tests/a` | 7 | words |\n| `tests/c` | 3 | words |\n'))
  assert [line.split() for line in lines] == [
    ['7.5', 's', 'a', 'of', '7', 'OVER', 'BUDGET'],
    ['2.0', 's', 'c', 'of', '3'],
    ['0.1', 's', 'new', 'NO', 'BUDGET:', 'give', 'it', 'a', 'row', 'in', 'tests/README.md'],
    ['4.5', 's', 'tests/a/b/test_y.py::test_two[a::b]'],
    ['3.0', 's', 'tests/a/test_x.py::test_one'],
    ['2.0', 's', 'tests/c/test_z.py::test'],
  ]


@pytest.mark.parametrize('strength', [2, 3])
def test_rows_cover_all_combinations_and_not_many_more_than_they_must(strength):
  levels = {'a': [1, 2, 3, 4], 'b': [None, 'x', 'y'], 'c': [True, False], 'd': [True, False], 'e': [0.5, None, 7.0]}
  rows = covering.rows(levels, strength)
  for names in itertools.combinations(levels, strength):
    seen = {tuple(row[name] for name in names) for row in rows}
    assert seen == set(itertools.product(*(levels[name] for name in names)))
  assert len(rows) <= {2: 18, 3: 55}[strength]  # at least 12 and 36
  assert rows == covering.rows(levels, strength)


def test_the_cache_loses_what_was_not_used_for_the_longest_time(tmp_path):
  for age, name in enumerate(('new', 'used', 'old', 'oldest')):
    (tmp_path / name).mkdir()
    (tmp_path / name / 'program').write_bytes(bytes(10))
    os.utime(tmp_path / name / 'program', (1e9 - age, 1e9 - age))
  os.utime(tmp_path / 'used/program', (1e9 + 5, 0))
  cache.prune(tmp_path, largest=25)
  assert sorted(path.parent.name for path in tmp_path.glob('*/program')) == ['new', 'used']


def test_compiled_programs_are_kept_apart_by_home_versions_and_processor(monkeypatch, tmp_path):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  here = cache.compiled_programs()
  assert here.parent == tmp_path / 'meshlm/tests/compiled' and 'jaxlib-' in here.name
  assert cache.compiled_programs() == here
  monkeypatch.setattr(cache, 'processor', lambda: 'another')
  assert cache.compiled_programs().name[:-12] == here.name[:-12] and cache.compiled_programs() != here
