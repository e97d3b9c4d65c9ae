import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

import data
from configs import base
from data import tokenizers

ROOT = pathlib.Path(__file__).resolve().parents[2]


def _data_config(tmp_path, **keys):
  data_config = base.get_config().data
  data_config.update({'tokenizer': 'bytes', 'corpus': 'text', 'document': 'blank-line', 'validation_fraction': 0.2})
  data_config.update({'cache_dir': str(tmp_path / 'cache'), 'path': str(tmp_path / 'text')})
  data_config.update(keys)
  return data_config


def _write(tmp_path, **texts):
  (tmp_path / 'text').mkdir(exist_ok=True)
  for name, text in texts.items():
    (tmp_path / 'text' / name).write_text(text)


def _blocks(*numbers):
  return '\n\n'.join(f'This is document {number}.' for number in numbers)


def _texts(dataset, split):
  return [dataset.tokenizer.decode(split.store[i]) for i in range(split.num_documents)]


def test_splits_share_no_document_and_lose_none(tmp_path):
  _write(tmp_path, a=_blocks(*range(100)), b=_blocks(*range(50, 200)), c='')
  dataset = data.prepare(_data_config(tmp_path), 17, 0)
  train, validation = _texts(dataset, dataset.train), _texts(dataset, dataset.validation)
  assert not set(train) & set(validation)
  assert sorted(train + validation) == sorted(_blocks(*range(200)).split('\n\n'))
  assert 20 < len(validation) < 60
  report = dataset.report
  assert report['duplicates'] == 50 and report['empty_files'] == 1 and report['documents'] == 200
  assert report['train_bytes'] + report['validation_bytes'] == sum(map(len, train + validation))


def test_sizes_of_a_split(tmp_path):
  _write(tmp_path, a='Grün.\n\nist es', b='und hier')
  dataset = data.prepare(_data_config(tmp_path, validation_fraction=0.0), 5, 0)
  split = dataset.train
  assert (split.num_documents, split.num_bytes, split.num_targets) == (3, 6 + 6 + 8, 6 + 6 + 8 + 3)
  assert split.bytes_per_target == 20 / 23
  assert dataset.validation.num_documents == dataset.validation.num_targets == 0
  assert list(data.eval_batches(dataset.validation, 5, 2, 'documents')) == []
  assert sum(rows.num_targets for rows in dataset.rows) == split.num_targets


def test_stream_holds_documents_between_ends(tmp_path):
  _write(tmp_path, a='ab\n\ncde')
  split = data.prepare(_data_config(tmp_path, validation_fraction=0.0), 5, 0).train
  eos = split.eos_id
  stream = split.stream(np.arange(8))
  assert stream.dtype == np.int32
  assert stream.tolist() == [eos, *b'ab', eos, *b'cde', eos]
  assert split.stream(np.array([6, 0, 3])).tolist() == [ord('e'), eos, eos]


def test_fingerprint_follows_what_decides_batches_and_nothing_else(tmp_path):
  _write(tmp_path, a=_blocks(*range(30)))
  data_config = _data_config(tmp_path)
  prints = [
    data.prepare(data_config, 17, 0).fingerprint,
    data.prepare(data_config, 17, 1).fingerprint,
    data.prepare(data_config, 18, 0).fingerprint,
  ]
  for key, value in (('packing', 'none'), ('normalization', 'nfkc-lowercase'), ('validation_fraction', 0.5)):
    prints.append(data.prepare(_data_config(tmp_path, **{key: value}), 17, 0).fingerprint)
  (tmp_path / 'text' / 'a').rename(tmp_path / 'text' / 'b')
  moved = _data_config(tmp_path, cache_dir=str(tmp_path / 'other'), path=str(tmp_path / 'text' / 'b'))
  assert data.prepare(moved, 17, 0).fingerprint == prints[0]
  _write(tmp_path, c='One more document.')
  prints.append(data.prepare(_data_config(tmp_path), 17, 0).fingerprint)
  assert len(set(prints)) == len(prints)


def test_components_of_a_mixture_keep_apart(tmp_path):
  _write(tmp_path, a=_blocks(*range(40)), b=_blocks(*range(20, 100)))
  mixture = (
    {'corpus': 'text', 'path': str(tmp_path / 'text' / 'a'), 'weight': 51},
    {'corpus': 'text', 'path': str(tmp_path / 'text' / 'b'), 'weight': 49},
  )
  dataset = data.prepare(_data_config(tmp_path, corpus='mixture', path='', mixture=mixture), 33, 0)
  assert dataset.weights == (0.51, 0.49)
  assert dataset.report['duplicates'] == 20
  first, second = dataset.rows
  assert first.starts.max() < second.starts.min()
  assert first.num_targets + second.num_targets == dataset.train.num_targets
  assert dataset.num_rows == len(first) + len(second)
  with pytest.raises(ValueError, match=r'no training document is left of text \(.*a\).*40 duplicates'):
    data.prepare(_data_config(tmp_path, corpus='mixture', path='', mixture=mixture[:1] * 2), 33, 0)


def test_corpus_without_text_is_told(tmp_path):
  _write(tmp_path, a='', b=' \n')
  with pytest.raises(ValueError, match=r'the corpus text \(.*\) has no text: 1 empty files, 1 empty documents'):
    data.prepare(_data_config(tmp_path), 17, 0)


def test_progress_reaches_the_total(tmp_path):
  _write(tmp_path, a=_blocks(*range(100)))
  bars = {}

  def progress(description, total):
    bar = bars[description] = {'total': total, 'done': 0}
    return lambda n: bar.update(done=bar['done'] + n)

  dataset = data.prepare(_data_config(tmp_path), 17, 0, progress)
  assert bars['Encoding the training documents'] == {'total': dataset.train.num_bytes, 'done': dataset.train.num_bytes}


def test_text_split_reads_any_files(tmp_path):
  _write(tmp_path, a='one\r\n\r\ntwo', b='', c='three')
  tokenizer = tokenizers.train(_data_config(tmp_path), [])
  split = data.text_split([tmp_path / 'text' / 'a', str(tmp_path / 'text' / '[bc]')], tokenizer, 'blank-line')
  eos = tokenizer.eos_id
  assert split.num_documents == 3 and split.num_bytes == 11
  assert split.stream(np.arange(15)).tolist() == [eos, *b'one', eos, *b'two', eos, *b'three', eos]
  with pytest.raises(FileNotFoundError, match='nowhere'):
    data.text_split([tmp_path / 'nowhere'], tokenizer, 'file')
  with pytest.raises(ValueError, match='no text in'):
    data.text_split([tmp_path / 'text' / 'b'], tokenizer, 'file')


def test_default_corpus_is_packed_into_98_percent_of_slots():
  data_config = base.get_config().data
  dataset = data.prepare(data_config, data_config.sequence_length + 1, 0)
  assert dataset.report['slots_used'] > 0.98
  assert dataset.report['bytes_per_token'] > 2
  assert 0.01 < dataset.validation.num_bytes / dataset.train.num_bytes < 0.2


def test_importing_data_imports_no_jax():
  code = 'import sys, data; assert not {"jax", "grain", "datasets", "pyarrow"} & set(sys.modules)'
  subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True, env={**os.environ, 'PYTHONPATH': str(ROOT)})
