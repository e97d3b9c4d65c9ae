import builtins
import json
import time

import pytest

import data
from configs import base
from data import corpora
from data.documents import Counts


def _data_config(tmp_path, **keys):
  data_config = base.get_config().data
  data_config.cache_dir = str(tmp_path / 'cache')
  data_config.update(keys)
  return data_config


def _read(data_config):
  counts = Counts()
  read = [document for corpus in corpora.find(data_config) for document in corpora.read(corpus, counts)]
  return read, counts


def _write(path, content):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  return path


def _texts(documents):
  return [document.text for document in documents]


def test_documentation_of_the_standard_library(tmp_path):
  data_config = _data_config(tmp_path, corpus='python-docs', cache_dir='')
  read, _ = _read(data_config)
  by_source = {document.source: document.text for document in read}
  assert 1.5e6 < sum(len(text.encode()) for text in by_source.values()) < 3e6
  assert json.__doc__.strip().splitlines()[0] in by_source['json/__init__.py']
  assert 'with' in by_source['pydoc_data/topics.py:with']
  modules = [source for source in by_source if ':' not in source]
  assert modules == sorted(modules)
  assert not any('site-packages' in source or '/test/' in source or source.startswith('test/') for source in modules)
  assert read == _read(data_config)[0]


def test_documentation_follows_the_source(tmp_path):
  read, _ = _read(_data_config(tmp_path, corpus='python-docs', cache_dir=''))
  text = next(document.text for document in read if document.source == 'json/decoder.py')
  decode = text.index('Return the Python representation of ``s``')
  assert text.index('Simple JSON <https://json.org> decoder') < decode < text.index('Decode a JSON document from ``s``')


def test_sources_of_the_standard_library(tmp_path):
  read, counts = _read(_data_config(tmp_path, corpus='python-sources'))
  assert 8e6 < sum(len(document.text) for document in read) < 16e6
  assert any('def cleandoc' in document.text for document in read if document.source == 'inspect.py')
  assert counts['empty_documents'] > 0


def test_text_from_a_file_a_directory_and_a_glob(tmp_path):
  _write(tmp_path / 'text' / 'b.txt', 'b\r\n')
  _write(tmp_path / 'text' / 'deep' / 'a.md', 'a')
  _write(tmp_path / 'text' / 'empty.txt', '')
  _write(tmp_path / 'text' / '.hidden', b'\xff')
  expected = {'text': ['b\n', 'a'], 'text/b.txt': ['b\n'], 'text/*.txt': ['b\n'], 'text/**/*.md': ['a']}
  for path, texts in expected.items():
    read, counts = _read(_data_config(tmp_path, corpus='text', path=str(tmp_path / path)))
    assert _texts(read) == texts
    assert counts['empty_files'] == (path in ('text', 'text/*.txt'))
    assert counts['crlf_lines'] == ('b\n' in texts)


def test_text_in_blocks_names_their_lines(tmp_path):
  file = _write(tmp_path / 'a.txt', 'one\r\ntwo\r\n\r\nthree\n')
  read, counts = _read(_data_config(tmp_path, corpus='text', path=str(file), document='blank-line'))
  assert [(document.text, document.source) for document in read] == [('one\ntwo', f'{file}:1'), ('three', f'{file}:4')]
  assert counts['crlf_lines'] == 3


def test_jsonl(tmp_path):
  file = _write(tmp_path / 'a.jsonl', '{"body": "one\\r\\n"}\n\n{"body": "gr\\u00fcn", "id": 2}\n{"body": ""}\n')
  read, counts = _read(_data_config(tmp_path, corpus='jsonl', path=str(tmp_path), text_field='body'))
  assert [(document.text, document.source) for document in read] == [('one\n', f'{file}:1'), ('grün', f'{file}:3')]
  assert counts['empty_documents'] == counts['crlf_lines'] == 1


@pytest.mark.parametrize(
  'lines, message',
  [
    (b'{"text": "a"}\n{"text": \n', r'a\.jsonl:2: not a JSON object'),
    (b'{"text": "a"}\n["text"]\n', r'a\.jsonl:2: a JSON object a line is expected, but this is a list'),
    (
      b'{"body": "a", "id": 1}\n',
      r"a\.jsonl:1: no field 'text'; there are 'body', 'id'.*--config.data.text_field=NAME",
    ),
    (b'{"text": "a"}\n\n{"text": 3}\n', r"a\.jsonl:3: field 'text' is a int, not a text"),
    (b'{"text": "a"}\n{"text": "\xff"}\n', r'a\.jsonl:2: invalid UTF-8'),
    (b'{"text": "a\\u0000b"}\n', r'a\.jsonl:1: a NUL character'),
    (b'{"text": "\\ud800"}\n', r'a\.jsonl:1: .* surrogate'),
  ],
)
def test_bad_jsonl_is_told_with_file_and_line(tmp_path, lines, message):
  _write(tmp_path / 'a.jsonl', lines)
  with pytest.raises(ValueError, match=message):
    _read(_data_config(tmp_path, corpus='jsonl', path=str(tmp_path)))


def test_bad_text_is_told_with_file_and_line(tmp_path):
  _write(tmp_path / 'a.txt', 'fine')
  _write(tmp_path / 'b.txt', b'one\ntwo\xff\n')
  for document in ('file', 'blank-line'):
    with pytest.raises(ValueError, match=r'b\.txt: invalid UTF-8 \(0xff\) at line 2, byte 7'):
      _read(_data_config(tmp_path, corpus='text', path=str(tmp_path), document=document))


@pytest.mark.parametrize(
  'keys, error, message',
  [
    ({'corpus': 'books'}, ValueError, "data.corpus='books' does not exist; choose one of python-docs.*mixture"),
    ({'corpus': 'text'}, ValueError, 'corpus text needs data.path: --config.data.path=FILE'),
    ({'path': 'x.txt'}, ValueError, 'corpus python-docs takes no path.*data.corpus=text'),
    ({'corpus': 'text', 'path': 'nowhere.txt'}, FileNotFoundError, 'nowhere.txt does not exist'),
    ({'corpus': 'jsonl', 'path': 'nowhere/*.jsonl'}, FileNotFoundError, r'no file matches nowhere/\*.jsonl'),
    ({'corpus': 'jsonl', 'path': '.'}, FileNotFoundError, 'the directory . holds no .jsonl file'),
    ({'corpus': 'text', 'path': 'a.txt', 'document': 'page'}, ValueError, "data.document='page'.*file, blank-line"),
    ({'corpus': 'mixture'}, ValueError, 'data.mixture is empty'),
    (
      {'corpus': 'mixture', 'mixture': ({'corpus': 'text', 'wait': 1},)},
      ValueError,
      r"data.mixture\[0\] has the unknown key 'wait'",
    ),
    ({'corpus': 'mixture', 'mixture': ({'corpus': 'python-docs'},)}, ValueError, 'lacks weight'),
    (
      {'corpus': 'mixture', 'mixture': ({'corpus': 'text', 'path': 'nowhere.txt', 'weight': 1},)},
      FileNotFoundError,
      'nowhere.txt',
    ),
    ({'corpus': 'mixture', 'mixture': ({'corpus': 'python-docs', 'weight': 'much'},)}, ValueError, 'takes a number'),
    ({'validation_fraction': 1.5}, ValueError, 'validation_fraction=1.5 must be at least 0 and below 1'),
    ({'packing': 'bins'}, ValueError, "data.packing='bins' does not exist; choose one of documents, none"),
  ],
)
def test_mistakes_are_told_before_anything_is_read(tmp_path, monkeypatch, keys, error, message):
  monkeypatch.chdir(tmp_path)
  _write(tmp_path / 'a.txt', 'text')
  monkeypatch.setattr(corpora, 'read', lambda *_: pytest.fail('the corpus was read'))
  start = time.monotonic()
  with pytest.raises(error, match=message):
    data.prepare(_data_config(tmp_path, **keys), 9, 0)
  assert time.monotonic() - start < 2


@pytest.mark.parametrize('row_length, seed, message', [(1, 0, 'sequence_length must be'), (9, -1, 'the seed is -1')])
def test_impossible_rows_and_seeds_are_told(tmp_path, row_length, seed, message):
  with pytest.raises(ValueError, match=message):
    data.prepare(_data_config(tmp_path), row_length, seed)


@pytest.mark.parametrize('corpus', ['parquet', 'huggingface'])
def test_missing_packages_are_told_with_the_command(tmp_path, monkeypatch, corpus):
  real_import = builtins.__import__

  def without_the_extra(name, *args, **kwargs):
    if name.split('.')[0] in ('pyarrow', 'datasets'):
      raise ModuleNotFoundError(f'No module named {name!r}', name=name)
    return real_import(name, *args, **kwargs)

  monkeypatch.setattr(builtins, '__import__', without_the_extra)
  with pytest.raises(ImportError, match=rf'data.corpus={corpus} needs .* pip install -e \.\[data\]'):
    data.prepare(_data_config(tmp_path, corpus=corpus, path='somewhere'), 9, 0)


def test_parquet(tmp_path):
  pyarrow = pytest.importorskip('pyarrow', reason='takes the extra [data]')
  parquet = pytest.importorskip('pyarrow.parquet', reason='takes the extra [data]')
  file = tmp_path / 'a.parquet'
  parquet.write_table(pyarrow.table({'body': ['one', '', 'three'], 'id': [1, 2, 3]}), file)
  read, counts = _read(_data_config(tmp_path, corpus='parquet', path=str(tmp_path), text_field='body'))
  assert [(document.text, document.source) for document in read] == [('one', f'{file}:1'), ('three', f'{file}:3')]
  assert counts['empty_documents'] == 1
  with pytest.raises(ValueError, match=r"a\.parquet: no field 'text'; there are 'body', 'id'"):
    _read(_data_config(tmp_path, corpus='parquet', path=str(file)))
  parquet.write_table(pyarrow.table({'text': ['one', None]}), file)
  with pytest.raises(ValueError, match=r"a\.parquet:2: field 'text' is a NoneType"):
    _read(_data_config(tmp_path, corpus='parquet', path=str(file)))
  file.write_bytes(b'PAR2')
  with pytest.raises(ValueError, match=r'a\.parquet: not a Parquet file'):
    _read(_data_config(tmp_path, corpus='parquet', path=str(file)))


def test_huggingface_directory(tmp_path):
  datasets = pytest.importorskip('datasets', reason='takes the extra [data]')
  directory = str(tmp_path / 'saved')
  train = datasets.Dataset.from_dict({'body': ['one', 'two']})
  train.save_to_disk(directory)
  data_config = _data_config(tmp_path, corpus='huggingface', path=directory, text_field='body')
  assert _texts(_read(data_config)[0]) == ['one', 'two']
  with pytest.raises(ValueError, match=r"saved: no field 'text'; there are 'body'"):
    _read(_data_config(tmp_path, corpus='huggingface', path=directory))
  datasets.DatasetDict({'train': train, 'test': train}).save_to_disk(directory + '2')
  data_config.path = directory + '2'
  assert _texts(_read(data_config)[0]) == ['one', 'two']
  datasets.DatasetDict({'test': train}).save_to_disk(directory + '3')
  data_config.path = directory + '3'
  with pytest.raises(ValueError, match='no split named train; there are test'):
    _read(data_config)
  data_config.path = str(tmp_path / 'nowhere')
  with pytest.raises(FileNotFoundError, match='nowhere is no directory'):
    corpora.find(data_config)
