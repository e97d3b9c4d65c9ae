import pathlib
import signal
import subprocess
import sys
import types

import pytest

from data import cache

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_the_folder_follows_config_then_environment_then_home(monkeypatch, tmp_path):
  monkeypatch.setenv('HOME', str(tmp_path))
  monkeypatch.setenv('XDG_CACHE_HOME', '/xdg')
  assert cache.cache_dir(types.SimpleNamespace(cache_dir='~/mine')) == tmp_path / 'mine'
  assert cache.cache_dir(types.SimpleNamespace(cache_dir='')) == pathlib.Path('/xdg/meshlm')
  monkeypatch.delenv('XDG_CACHE_HOME')
  assert cache.cache_dir(types.SimpleNamespace(cache_dir='')) == tmp_path / '.cache' / 'meshlm'


def test_a_folder_appears_whole_and_replaces_what_was_there(tmp_path):
  for text in ('old', 'new'):
    with cache.new_directory(tmp_path / 'a' / 'b') as unfinished:
      (unfinished / text).write_text(text)
      assert not (tmp_path / 'a' / 'b' / text).exists()
    assert [path.name for path in (tmp_path / 'a' / 'b').iterdir()] == [text]
  assert [path.name for path in (tmp_path / 'a').iterdir()] == ['b']


def test_a_failed_block_leaves_the_old_folder(tmp_path):
  with cache.new_directory(tmp_path / 'a') as unfinished:
    (unfinished / 'old').touch()
  with pytest.raises(KeyError), cache.new_directory(tmp_path / 'a') as unfinished:
    (unfinished / 'new').touch()
    raise KeyError
  assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob('*')] == ['a', 'a/old']


def test_a_killed_process_leaves_no_folder_of_that_name(tmp_path):
  code = (
    'import os, pathlib, signal, sys; from data import cache\n'
    'with cache.new_directory(pathlib.Path(sys.argv[1])) as unfinished:\n'
    '  (unfinished / "half").touch(); os.kill(os.getpid(), signal.SIGKILL)'
  )
  killed = subprocess.run([sys.executable, '-c', code, str(tmp_path / 'a')], cwd=ROOT)
  assert killed.returncode == -signal.SIGKILL
  assert not (tmp_path / 'a').exists()


def test_of_two_writers_both_find_a_whole_folder(tmp_path):
  with cache.new_directory(tmp_path / 'a') as slow:
    (slow / 'file').write_text('slow')
    with cache.new_directory(tmp_path / 'a') as fast:
      (fast / 'file').write_text('fast')
  assert (tmp_path / 'a' / 'file').read_text() == 'slow'
  assert len(list(tmp_path.iterdir())) == 1
