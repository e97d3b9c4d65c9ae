"""The choice of an interpreter and the installation, played with fake interpreters; constraints against ranges."""

import configparser
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
from packaging import requirements, version

ROOT = pathlib.Path(__file__).resolve().parents[2]


def fake_python(path, prelude='', log='/dev/null', pip_status=0):
  """A python that believes `prelude`, makes environments of itself and only writes down what pip is asked."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(f"""#!/bin/sh
case "$1 $2" in
  "-m venv") mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
  "-m pip") echo "$*" >>'{log}'; exit {pip_status} ;;
  *) exec '{sys.executable}' -c 'import sys
{prelude}
exec(sys.argv[1])' "$2" ;;
esac
""")
  path.chmod(0o755)
  return path


def of_version(*numbers):
  return f'sys.version_info = {numbers}; sys.executable = "python-of-{numbers[1]}"'


def failing_shim(path):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(f'#!/bin/sh\necho "pyenv: {path.name}: command not found" >&2\nexit 127\n')
  path.chmod(0o755)


def find_python(*directories, python='', version=(), **variables):
  environment = {'PATH': ':'.join(map(str, directories)), 'PYTHON': python} | variables
  return subprocess.run([ROOT / 'scripts/find_python.sh', *version], env=environment, capture_output=True, text=True)


class TestFindPython:
  def test_takes_the_newest_whatever_its_name_and_place(self, tmp_path):
    fake_python(tmp_path / 'a/python3.11', of_version(3, 11, 9))
    fake_python(tmp_path / 'b/python3', of_version(3, 13, 1))
    fake_python(tmp_path / 'b/python3.12', of_version(3, 12, 4))
    fake_python(tmp_path / 'c/python3.11', of_version(3, 11, 9))
    fake_python(tmp_path / 'c/python', of_version(3, 14, 0))
    assert find_python(*(tmp_path / name for name in 'abc')).stdout == 'python-of-13\n'

  def test_passes_over_a_failing_shim_to_the_same_name_further_on(self, tmp_path):
    failing_shim(tmp_path / 'shims/python3.13')
    failing_shim(tmp_path / 'shims/python3.12')
    fake_python(tmp_path / 'shims/python3.11', of_version(3, 11, 9))
    fake_python(tmp_path / 'usr bin/python3.12', of_version(3, 12, 4))
    assert find_python(tmp_path / 'shims', tmp_path / 'usr bin').stdout == 'python-of-12\n'

  def test_passes_over_one_that_cannot_make_environments(self, tmp_path):
    fake_python(tmp_path / 'python3.12', of_version(3, 12, 4) + '; sys.modules["ensurepip"] = None')
    fake_python(tmp_path / 'python3.11', of_version(3, 11, 9))
    assert find_python(tmp_path).stdout == 'python-of-11\n'

  @pytest.mark.parametrize(
    'folder, variables',
    [
      ('.pyenv/versions/3.13.1', {}),
      ('.local/share/uv/python/cpython-3.13.1-linux-x86_64-gnu', {}),
      ('py env/versions/3.13.1', {'PYENV_ROOT': 'py env'}),
      ('of uv/cpython-3.13.1', {'UV_PYTHON_INSTALL_DIR': 'of uv'}),
      ('share/uv/python/cpython-3.13.1', {'XDG_DATA_HOME': 'share'}),
    ],
  )
  def test_finds_what_pyenv_and_uv_installed_outside_of_the_path(self, tmp_path, folder, variables):
    fake_python(tmp_path / 'bin/python3', of_version(3, 12, 4))
    fake_python(tmp_path / folder / 'bin/python3.13', of_version(3, 13, 1))
    failing_shim(tmp_path / folder / '../newer/bin/python3.13')
    variables = {name: str(tmp_path / value) for name, value in variables.items()}
    assert find_python(tmp_path / 'bin', HOME=str(tmp_path), **variables).stdout == 'python-of-13\n'
    assert find_python(tmp_path / 'bin').stdout == 'python-of-12\n'

  def test_of_one_version_the_path_comes_first(self, tmp_path):
    fake_python(tmp_path / 'bin/python3.12', of_version(3, 12, 4) + '; sys.executable = "on-path"')
    fake_python(tmp_path / '.pyenv/versions/3.12.9/bin/python3.12', of_version(3, 12, 9))
    assert find_python(tmp_path / 'bin', HOME=str(tmp_path)).stdout == 'on-path\n'

  def test_a_version_can_be_asked_for(self, tmp_path):
    fake_python(tmp_path / 'bin/python3', of_version(3, 13, 1))
    fake_python(tmp_path / '.pyenv/versions/3.11.9/bin/python3.11', of_version(3, 11, 9))
    assert find_python(tmp_path / 'bin', HOME=str(tmp_path), version=['3.11']).stdout == 'python-of-11\n'
    result = find_python(tmp_path / 'bin', HOME=str(tmp_path), version=['3.12'])
    assert result.returncode == 1 and 'nor uv has 3.12 that runs' in result.stderr

  def test_says_why_each_was_refused(self, tmp_path):
    failing_shim(tmp_path / 'python3.13')
    fake_python(tmp_path / 'python3.12', of_version(3, 12, 4) + '; sys.modules["ensurepip"] = None')
    fake_python(tmp_path / 'python3', of_version(3, 10, 2))
    result = find_python(tmp_path)
    assert result.returncode == 1 and not result.stdout
    assert 'meshlm needs CPython 3.11, 3.12 or 3.13 with the venv module' in result.stderr
    assert f'{tmp_path}/python3.13 does not run' in result.stderr
    assert f'{tmp_path}/python3.12 is Python 3.12.4 without the venv module' in result.stderr
    assert f'{tmp_path}/python3 is Python 3.10.2' in result.stderr
    assert 'make train PYTHON=' in result.stderr

  def test_named_interpreter_is_taken_or_refused_never_replaced(self, tmp_path):
    fake_python(tmp_path / 'python3.13', of_version(3, 13, 1))
    older = fake_python(tmp_path / 'older', of_version(3, 11, 9))
    assert find_python(tmp_path, python=str(older)).stdout == 'python-of-11\n'
    result = find_python(tmp_path, python='/nowhere/python3')
    assert result.returncode == 1 and not result.stdout
    assert result.stderr.startswith('PYTHON=/nowhere/python3 does not run; meshlm needs')


@pytest.fixture
def checkout(tmp_path):
  """A copy of what the installation reads, in a folder whose name has a space."""
  folder = tmp_path / 'a checkout'
  folder.mkdir()
  for name in ('setup.cfg', 'pyproject.toml', 'Makefile'):
    shutil.copy(ROOT / name, folder)
  for name in ('scripts', 'constraints'):
    shutil.copytree(ROOT / name, folder / name)
  return folder


class TestInstall:
  """scripts/install.sh as make calls it, with interpreters that only note what pip is asked."""

  def make(self, checkout, python=''):
    # The tests may themselves run under make, whose variables would win over these.
    inherited = {key: value for key, value in os.environ.items() if key not in ('MAKEFLAGS', 'MAKELEVEL', 'MFLAGS')}
    environment = inherited | {'PYTHON': str(python)}
    return subprocess.run(['make', 'install'], cwd=checkout, env=environment, capture_output=True, text=True)

  def installations(self, checkout):
    log = checkout / 'pip.log'
    return log.read_text().splitlines() if log.exists() else []

  def python(self, checkout, name='base', **kwargs):
    here = f'sys.executable = "{checkout}/{name}"; sys.base_prefix = "/{name}"'
    return fake_python(checkout / name, here, log=checkout / 'pip.log', **kwargs)

  def test_installs_once_with_the_constraints_of_the_version(self, checkout):
    python = self.python(checkout)
    assert self.make(checkout, python).returncode == 0
    [command] = self.installations(checkout)
    assert f'constraints/py3{sys.version_info[1]}.txt' in command and '.[test]' in command
    assert self.make(checkout, python).returncode == 0
    again = self.make(checkout)
    assert again.returncode == 0 and not again.stdout + again.stderr
    assert len(self.installations(checkout)) == 1

  def test_installs_again_when_requirements_change(self, checkout):
    self.make(checkout, self.python(checkout))
    with open(checkout / 'setup.cfg', 'a') as file:
      file.write('# changed\n')
    result = self.make(checkout)
    assert result.returncode == 0 and 'Making' not in result.stdout
    assert len(self.installations(checkout)) == 2

  def test_another_interpreter_makes_the_environment_anew(self, checkout):
    self.make(checkout, self.python(checkout, 'one'))
    (checkout / '.venv/installed-from').unlink()  # --clear is the business of the real venv
    result = self.make(checkout, self.python(checkout, 'two'))
    assert f'Making .venv with {checkout}/two' in result.stdout
    assert len(self.installations(checkout)) == 2

  def test_failed_installation_fails_make_and_is_tried_again(self, checkout):
    assert self.make(checkout, self.python(checkout, pip_status=3)).returncode != 0
    assert self.make(checkout).returncode != 0
    assert len(self.installations(checkout)) == 2

  def test_without_a_suitable_interpreter_nothing_is_made(self, checkout):
    result = self.make(checkout, '/nowhere/python3')
    assert result.returncode != 0 and 'PYTHON=/nowhere/python3 does not run' in result.stderr
    assert not (checkout / '.venv').exists()


@pytest.mark.parametrize('file', sorted(ROOT.glob('constraints/*.txt')), ids=lambda file: file.stem)
def test_constraints_pin_every_requirement_within_its_range(file):
  pins = dict(line.split('==') for line in file.read_text().splitlines() if not line.startswith('#'))
  pins = {name.lower().replace('_', '-'): pin for name, pin in pins.items()}
  setup = configparser.ConfigParser()
  setup.read(ROOT / 'setup.cfg')
  wanted = setup['options']['install_requires'] + setup['options.extras_require']['test']
  for line in wanted.split('\n'):
    if line.strip():
      requirement = requirements.Requirement(line)
      pin = pins[requirement.name.lower().replace('_', '-')]
      assert version.Version(pin) in requirement.specifier, f'{file.name} pins {requirement.name} {pin}'
