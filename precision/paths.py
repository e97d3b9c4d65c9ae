"""Patterns over paths of parameters and modules, such as 'layers/attention/query/kernel'."""

import difflib
import fnmatch
from collections.abc import Iterable, Sequence


def matches(pattern: str, path: str) -> bool:
  """Whether a glob pattern matches a path or one of its ancestors.

  `*` stands for any text, '/' included: 'embedding' selects all below it, '*/mlp' the feed-forward of every stack.
  """
  return any(fnmatch.fnmatchcase(ancestor, pattern) for ancestor in _ancestors(path))


def select(patterns: Sequence[str], paths: Iterable[str], key: str = 'the list of patterns') -> dict[str, int]:
  """The index of the first pattern that matches, for each path that one does.

  Args:
    patterns: globs, see `matches`.
    paths: of leaves.
    key: what an error calls the patterns.

  Raises:
    ValueError: a pattern matches no path; names that are near are listed.
  """
  paths = list(paths)
  for pattern in patterns:
    if not any(matches(pattern, path) for path in paths):
      raise ValueError(f'{key}: {pattern!r} matches nothing{_near(pattern, paths)}')
  chosen = {path: [i for i, pattern in enumerate(patterns) if matches(pattern, path)] for path in paths}
  return {path: indices[0] for path, indices in chosen.items() if indices}


def _ancestors(path: str) -> list[str]:
  parts = path.split('/')
  return ['/'.join(parts[:n]) for n in range(1, len(parts) + 1)]


def _near(pattern: str, paths: list[str]) -> str:
  known = list(dict.fromkeys(ancestor for path in paths for ancestor in _ancestors(path)))
  near = difflib.get_close_matches(pattern, known, n=3, cutoff=0.5)
  if not near:
    last = {name.rsplit('/')[-1]: f'*/{name.rsplit("/")[-1]}' for name in known}
    near = [last[name] for name in difflib.get_close_matches(pattern.rsplit('/')[-1], last, n=3)]
  near = near or list(dict.fromkeys(path.split('/')[0] for path in paths))
  return f'; did you mean {" or ".join(map(repr, near))}?'
