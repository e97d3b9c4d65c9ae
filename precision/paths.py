"""Patterns that select modules and parameters by their path, such as 'layers/attention/query/kernel'."""

import difflib
import fnmatch
from collections.abc import Iterable, Sequence


def matches(pattern: str, path: str) -> bool:
  """Whether a glob matches a path or one of its ancestors: 'layers/mlp' and '*/mlp' both match 'layers/mlp/up'.

  `*` stands for any text, slashes included; `?` for one character.
  """
  parts = path.split('/')
  return any(fnmatch.fnmatchcase('/'.join(parts[:end]), pattern) for end in range(1, len(parts) + 1))


def select(patterns: Sequence[str], paths: Iterable[str]) -> dict[str, int | None]:
  """For each path the number of the first pattern that matches it, or None.

  Raises:
    ValueError: a pattern matches nothing; says which paths have near names.
  """
  paths = list(paths)
  chosen = {path: next((i for i, pattern in enumerate(patterns) if matches(pattern, path)), None) for path in paths}
  for pattern in patterns:
    if not any(matches(pattern, path) for path in paths):
      near = difflib.get_close_matches(pattern, paths, n=3, cutoff=0.3) or sorted(paths)[:3]
      raise ValueError(f'the pattern {pattern!r} matches nothing; there are for example {", ".join(near)}')
  return chosen
