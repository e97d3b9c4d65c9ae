"""Corpora: where documents come from.

`find` looks only at the config and the file system, so that a mistake is told before anything is read; `read` then
yields the documents. A new kind of corpus is a reader in `_READERS`.
"""

import dataclasses
import glob
import json
import pathlib
from collections.abc import Callable, Iterator

from data import cache, documents, standard_library
from data.documents import Counts, Document

_SUFFIXES = {
  'text': '',
  'jsonl': '.jsonl',
  'parquet': '.parquet',
  'pairs': '',
}  # of the files that a directory stands for


@dataclasses.dataclass(frozen=True)
class Corpus:
  """A corpus that was found.

  Attributes:
    name: one of the values of `data.corpus` but mixture.
    path: what the user gave.
    files: what `path` stands for, sorted; empty where the corpus is not made of files.
    weight: share of the tokens delivered in training, before normalisation.
    text_field: the field of a record that holds the text.
    source_field, target_field: those that hold the sides of a pair.
    document: one of the values of `data.document`.
    cache_dir: folder for what is slow to derive.
  """

  name: str
  path: str = ''
  files: tuple[pathlib.Path, ...] = ()
  weight: float = 1.0
  text_field: str = 'text'
  source_field: str = 'source'
  target_field: str = 'target'
  document: str = 'file'
  cache_dir: pathlib.Path = pathlib.Path()


def find(data_config) -> list[Corpus]:
  """The corpora of a config: one, or the components of a mixture in their order.

  Raises:
    ValueError: a value or a combination that is not allowed.
    FileNotFoundError: nothing lies where `path` points.
    ImportError: the corpus takes a package that is not installed.
  """
  if data_config.corpus != 'mixture':
    return [_find(data_config, data_config.corpus, data_config.path)]
  if not data_config.mixture:
    raise ValueError(
      "data.corpus is mixture but data.mixture is empty; give a tuple of mappings such as {'corpus': "
      "'text', 'path': 'FILE', 'weight': 0.5}"
    )
  return [
    _find(data_config, component['corpus'], component.get('path', ''), component['weight'])
    for component in data_config.mixture
  ]


def _find(data_config, name: str, path: str, weight: float = 1.0) -> Corpus:
  if name.startswith('python-') and path:
    raise ValueError(f'corpus {name} takes no path, but data.path is {path!r}; your own text is data.corpus=text')
  if not name.startswith('python-') and not path:
    raise ValueError(f'corpus {name} needs data.path: --config.data.path=FILE')
  if name == 'pairs' and data_config.packing != 'documents':
    raise ValueError('corpus pairs is packed in whole pairs: set data.packing=documents')
  if name in ('parquet', 'huggingface'):
    _import_extra(name)
  if name == 'huggingface' and (path.count('/') > 1 or path[0] in '/.~') and not _directory(path):
    raise FileNotFoundError(f'{path} is no directory; give one written by save_to_disk, or the name of a data set')
  files = find_files(path, _SUFFIXES[name]) if name in _SUFFIXES else ()
  return Corpus(
    name,
    path,
    files,
    weight,
    data_config.text_field,
    data_config.source_field,
    data_config.target_field,
    data_config.document,
    cache.cache_dir(data_config),
  )


def _directory(path: str) -> pathlib.Path | None:
  directory = pathlib.Path(path).expanduser()
  return directory if directory.is_dir() else None


def find_files(path: str, suffix: str = '') -> tuple[pathlib.Path, ...]:
  """The files that `path` stands for, sorted: itself, those below a directory (hidden ones not), or a glob's.

  Raises:
    FileNotFoundError: there is none.
  """
  target = pathlib.Path(path).expanduser()
  if target.is_file():
    return (target,)
  if target.is_dir():
    files = [file for file in target.rglob(f'*{suffix}') if file.is_file() and not _hidden(file.relative_to(target))]
    missing = f'the directory {path} holds no {suffix or "visible"} file'
  else:
    files = [pathlib.Path(name) for name in glob.glob(str(target), recursive=True) if pathlib.Path(name).is_file()]
    missing = f'no file matches {path}' if glob.has_magic(path) else f'{path} does not exist'
  if not files:
    raise FileNotFoundError(f'{missing} (working directory: {pathlib.Path.cwd()}); give a file, a directory or a glob')
  return tuple(sorted(files))


def _hidden(path: pathlib.Path) -> bool:
  return any(part.startswith('.') for part in path.parts)


def read(corpus: Corpus, counts: Counts, progress: Callable | None = None) -> Iterator[Document]:
  """The documents of `corpus` in a fixed order, cleaned; what was skipped or changed is added to `counts`.

  Raises:
    ValueError: a file cannot be read as what it should be; names the file and the line.
  """
  return documents.clean(_READERS[corpus.name](corpus, counts, progress), counts)


def _python_docs(corpus, counts, progress):
  return standard_library.read_documentation(corpus.cache_dir, progress)


def _python_sources(corpus, counts, progress):
  return standard_library.read_sources()


def _text(corpus, counts, progress):
  if corpus.document == 'file':
    return _whole_files(corpus, counts)
  cleaned = documents.clean(_whole_files(corpus, counts), counts)
  return (block for document in cleaned for block in documents.blank_line_blocks(document))


def _whole_files(corpus, counts):
  for file in corpus.files:
    content = file.read_bytes()
    if content:
      yield Document(documents.decode(content, str(file)), str(file))
    else:
      counts['empty_files'] += 1


def _jsonl(corpus, counts, progress):
  for file in corpus.files:
    for source, record in _json_records(file, counts):
      yield Document(_field(record, corpus.text_field, source), source)


def _pairs(corpus, counts, progress):
  for file in corpus.files:
    fields = (corpus.source_field, corpus.target_field)
    records = _tsv_records(file, fields, counts) if file.suffix == '.tsv' else _json_records(file, counts)
    for source, record in records:
      text, target = (
        _field(record, field, source, key) for field, key in zip(fields, ('source_field', 'target_field'), strict=True)
      )
      yield Document(text, source, target)


def _lines(file, counts) -> Iterator[tuple[str, bytes]]:
  """Where each line that is not empty stands, and what it holds without the end of the line."""
  if not file.stat().st_size:
    counts['empty_files'] += 1
  with open(file, 'rb') as lines:
    for number, line in enumerate(lines, 1):
      if line.strip():
        yield f'{file}:{number}', line.rstrip(b'\r\n')


def _json_records(file, counts):
  for source, line in _lines(file, counts):
    yield source, _json(line.strip(), source)


def _tsv_records(file, fields, counts):
  """Lines as records by the names of the first line, or by the numbers of the columns where `fields` are numbers."""
  names = None
  for source, line in _lines(file, counts):
    columns = documents.decode(line, source).split('\t')
    if names is None:
      numbered = all(field.isdigit() for field in fields)
      names = [str(i) for i in range(len(columns))] if numbered else columns
      if not numbered:
        continue
    if len(columns) != len(names):
      raise ValueError(f'{source}: {len(columns)} columns, but the first line has {len(names)}')
    yield source, dict(zip(names, columns, strict=True))


def _json(line: bytes, source: str):
  try:
    return json.loads(documents.decode(line, source))
  except json.JSONDecodeError as error:
    raise ValueError(f'{source}: not a JSON object: {error.msg} at column {error.colno}') from None


def _field(record, name: str, source: str, key: str = 'text_field') -> str:
  if not isinstance(record, dict):
    raise ValueError(f'{source}: a JSON object a line is expected, but this is a {type(record).__name__}')
  if name not in record:
    raise ValueError(
      f'{source}: no field {name!r}; there are {", ".join(map(repr, record))}. '
      f'Name the one with the text: --config.data.{key}=NAME'
    )
  if not isinstance(record[name], str):
    raise ValueError(f'{source}: field {name!r} is a {type(record[name]).__name__}, not a text')
  return record[name]


def _parquet(corpus, counts, progress):
  parquet = _import_extra('parquet')
  for file in corpus.files:
    try:
      table = parquet.ParquetFile(file)
    except Exception as error:  # pyarrow's own classes, which cannot be named without importing it
      raise ValueError(f'{file}: not a Parquet file: {error}') from None
    _field(dict.fromkeys(table.schema_arrow.names, ''), corpus.text_field, str(file))
    row = 0
    for batch in table.iter_batches(columns=[corpus.text_field]):
      for text in batch.column(0).to_pylist():
        row += 1
        yield Document(_field({corpus.text_field: text}, corpus.text_field, f'{file}:{row}'), f'{file}:{row}')


def _huggingface(corpus, counts, progress):
  datasets = _import_extra('huggingface')
  directory = _directory(corpus.path)
  loaded = datasets.load_from_disk(str(directory)) if directory else datasets.load_dataset(corpus.path)
  if isinstance(loaded, dict):
    if 'train' not in loaded:
      raise ValueError(f'{corpus.path}: no split named train; there are {", ".join(loaded)}')
    loaded = loaded['train']
  _field(dict.fromkeys(loaded.column_names, ''), corpus.text_field, corpus.path)
  for row, text in enumerate(loaded[corpus.text_field], 1):
    source = f'{corpus.path}:{row}'
    yield Document(_field({corpus.text_field: text}, corpus.text_field, source), source)


def _import_extra(name: str):
  try:
    if name == 'parquet':
      import pyarrow.parquet

      return pyarrow.parquet
    import datasets

    return datasets
  except ImportError as error:
    raise ImportError(
      f'data.corpus={name} needs the package {error.name}, which is not installed: pip install -e .[data]'
    ) from error


_READERS = {
  'python-docs': _python_docs,
  'python-sources': _python_sources,
  'text': _text,
  'jsonl': _jsonl,
  'parquet': _parquet,
  'huggingface': _huggingface,
  'pairs': _pairs,
}
