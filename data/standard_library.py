"""The two corpora that need no download: the standard library of the Python that runs the program.

Its files are read, never imported: importing all of them would run them.
"""

import ast
import hashlib
import importlib.util
import json
import os
import pathlib
import sysconfig
import warnings
from collections.abc import Iterator

from data import cache
from data.documents import Document

_LEFT_OUT = {'site-packages', 'dist-packages', 'test', 'tests', 'idle_test', '__pycache__'}
_TOPICS = 'pydoc_data/topics.py'
_DOCUMENTS = 'documents.jsonl'
_SCOPES = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_HOLD_STATEMENTS = (ast.stmt, ast.ExceptHandler, ast.match_case)


def read_sources() -> Iterator[Document]:
  """Every module's source, in the order of their paths; about 12 MB."""
  for name, content in _files():
    yield Document(importlib.util.decode_source(content), name)


def read_documentation(cache_dir: pathlib.Path, progress=None) -> Iterator[Document]:
  """Every module's docstrings joined, in the order of their paths, then the topics of `help()`; about 2.2 MB.

  Parsing takes seconds, so the outcome is kept in `cache_dir` under a hash of the sources.
  """
  files = list(_files())
  content_hash = hashlib.blake2b(digest_size=16)
  for name, content in files:
    content_hash.update(f'{name}\0{len(content)}\0'.encode() + content)
  directory = cache_dir / 'corpora' / f'python-docs-{content_hash.hexdigest()}'
  if not directory.exists():
    advance = progress('Reading the documentation', len(files)) if progress else lambda n: None
    with cache.new_directory(directory) as unfinished, open(unfinished / _DOCUMENTS, 'w') as file:
      for name, content in files:
        file.writelines(json.dumps(document) + '\n' for document in _documentation(name, content))
        advance(1)
  with open(directory / _DOCUMENTS) as file:
    for line in file:
      yield Document(*json.loads(line))


def _files() -> Iterator[tuple[str, bytes]]:
  root = pathlib.Path(sysconfig.get_path('stdlib'))
  paths = []
  for folder, folders, names in os.walk(root):
    folders[:] = [name for name in folders if name not in _LEFT_OUT]
    paths += [pathlib.Path(folder, name) for name in names if name.endswith('.py')]
  if not paths:
    raise FileNotFoundError(
      f"{root} holds no .py file: this Python comes without its library's sources. "
      f'Use another Python or your own text: --config.data.corpus=text --config.data.path=FILE'
    )
  by_name = {path.relative_to(root).as_posix(): path for path in paths}
  for name in sorted(by_name, key=lambda name: (name == _TOPICS, name)):
    yield name, by_name[name].read_bytes()


def _documentation(name: str, content: bytes) -> Iterator[tuple[str, str]]:
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # about escapes in the library's own strings
    tree = ast.parse(content)
  if name == _TOPICS:
    topics = next(ast.literal_eval(node) for node in ast.walk(tree) if isinstance(node, ast.Dict))
    yield from ((text, f'{name}:{topic}') for topic, text in sorted(topics.items()))
  elif docstrings := list(_docstrings(tree)):
    yield '\n\n'.join(docstrings), name


def _docstrings(node: ast.AST) -> Iterator[str]:
  if isinstance(node, _SCOPES) and (docstring := ast.get_docstring(node)):
    yield docstring
  for child in ast.iter_child_nodes(node):
    if isinstance(child, _HOLD_STATEMENTS):
      yield from _docstrings(child)
