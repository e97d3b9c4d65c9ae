"""What test runs leave for the next one: compiled programs and the failing examples of properties."""

import hashlib
import importlib.metadata
import os
import pathlib
import platform
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
LARGEST = 2**31  # bytes of compiled programs kept, over all versions and machines


def home() -> pathlib.Path:
  """Folder of everything kept: $XDG_CACHE_HOME/meshlm/tests or ~/.cache/meshlm/tests."""
  return pathlib.Path(os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache') / 'meshlm' / 'tests'


def processor() -> str:
  """Model and features of the CPU: compiled programs may hold instructions that another one lacks."""
  try:
    lines = pathlib.Path('/proc/cpuinfo').read_text().split('\n\n')[0].splitlines()
  except FileNotFoundError:
    return f'{platform.machine()} {platform.processor()}'
  told = [line for line in lines if line.split('\t')[0].strip() in ('model name', 'model', 'flags', 'Features')]
  return '\n'.join([platform.machine(), *told])


def compiled_programs() -> pathlib.Path:
  """Folder of the programs compiled by these versions, under these constraints, for this CPU."""
  constraints = ROOT / f'constraints/py{sys.version_info[0]}{sys.version_info[1]}.txt'
  told = hashlib.sha256(constraints.read_bytes() + processor().encode()).hexdigest()[:12]
  versions = '-'.join(f'{name}-{importlib.metadata.version(name)}' for name in ('jax', 'jaxlib'))
  return home() / 'compiled' / f'{versions}-{told}'


def prune(folder: pathlib.Path, largest: int = LARGEST):
  """Removes the files of `folder` that were not used for the longest time, until at most `largest` bytes are left."""
  files = []
  for path in folder.rglob('*'):
    try:
      stat = path.stat()
    except FileNotFoundError:  # another run removes files at the same time
      continue
    if path.is_file():
      files.append((max(stat.st_atime, stat.st_mtime), stat.st_size, path))
  excess = sum(size for _, size, _ in files) - largest
  for _, size, path in sorted(files):
    if excess <= 0:
      break
    path.unlink(missing_ok=True)
    excess -= size
