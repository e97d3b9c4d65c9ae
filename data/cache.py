"""Where derived files are kept, and how they are written so that a killed process leaves no half file."""

import contextlib
import fcntl
import logging
import os
import pathlib
import shutil
import uuid
from collections.abc import Iterator

_log = logging.getLogger(__name__)


def cache_dir(data_config) -> pathlib.Path:
  """Folder of trained tokenizers and token stores: `data.cache_dir`, or $XDG_CACHE_HOME/meshlm, or ~/.cache/meshlm."""
  if data_config.cache_dir:
    return pathlib.Path(data_config.cache_dir).expanduser()
  home = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
  return pathlib.Path(home) / 'meshlm'


@contextlib.contextmanager
def one_at_a_time(path: pathlib.Path) -> Iterator[None]:
  """Lets one process at a time make `path`; the others wait here and find it made.

  Processes on other hosts wait too where the file system locks across hosts; where it does not lock at all, each makes
  its own.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  with open(path.parent / f'.{path.name}.lock', 'w') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
      _log.warning('%s cannot be locked (%s): processes may prepare the same data at the same time', path, error)
    yield


@contextlib.contextmanager
def new_directory(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields an empty folder that takes the name `path` when the block ends well, and vanishes when it does not.

  A folder already at `path` is replaced. Of two processes that write the same path at the same time one wins; both
  find a whole folder there afterwards.
  """
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  unfinished = _hidden_sibling(path)
  unfinished.mkdir()
  try:
    yield unfinished
    _move(unfinished, path)
  finally:
    shutil.rmtree(unfinished, ignore_errors=True)


def _move(source: pathlib.Path, target: pathlib.Path) -> None:
  if target.exists():
    # A folder cannot be swapped in one system call: the old one steps aside under a name nobody reads.
    old = _hidden_sibling(target)
    with contextlib.suppress(FileNotFoundError):
      target.rename(old)
    shutil.rmtree(old, ignore_errors=True)
  try:
    source.rename(target)
  except OSError:
    if not target.is_dir():  # otherwise another process wrote the same path in the meantime
      raise


def _hidden_sibling(path):
  return path.parent / f'.{path.name}-{uuid.uuid4().hex}'
