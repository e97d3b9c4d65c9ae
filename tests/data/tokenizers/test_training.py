import io
import os
import pathlib
import subprocess
import sys
import types

import pytest
import sentencepiece
import tokenizers as library

from data import tokenizers
from data.tokenizers import saving, training

ROOT = pathlib.Path(__file__).resolve().parents[3]


def poison(monkeypatch):
  def trainer(*args):
    raise AssertionError('trained again')

  monkeypatch.setattr(training, 'TRAINERS', dict.fromkeys(training.TRAINERS, trainer))


@pytest.mark.parametrize('kind', training.TRAINERS)
def test_the_same_corpus_is_trained_on_once(data_config, documents, kind, monkeypatch):
  data_config.tokenizer = kind
  first = tokenizers.train(data_config, documents)
  poison(monkeypatch)
  assert tokenizers.train(data_config, documents) == first
  with pytest.raises(AssertionError, match='trained again'):
    tokenizers.train(data_config, documents[1:])
  for key, value in {'vocab_size': 699, 'normalization': 'nfc'}.items():
    changed = data_config.copy_and_resolve_references()
    setattr(changed, key, value)
    with pytest.raises(AssertionError, match='trained again'):
      tokenizers.train(changed, documents)


def test_two_documents_are_not_one(data_config, monkeypatch):
  data_config.tokenizer = 'characters'
  tokenizers.train(data_config, [types.SimpleNamespace(text='ab'), types.SimpleNamespace(text='c')])
  poison(monkeypatch)
  with pytest.raises(AssertionError, match='trained again'):
    tokenizers.train(data_config, [types.SimpleNamespace(text='a'), types.SimpleNamespace(text='bc')])


def test_a_damaged_cache_is_trained_again(data_config, documents, caplog):
  data_config.tokenizer = 'characters'
  first = tokenizers.train(data_config, documents)
  (file,) = pathlib.Path(data_config.cache_dir).rglob('characters.json')
  file.write_text('["')
  assert tokenizers.train(data_config, documents) == first
  assert 'trained again' in caplog.text
  assert saving.load(file.parent) == first


@pytest.mark.parametrize('kind', training.TRAINERS)
def test_processes_with_other_hash_seeds_train_the_same(data_config, documents, kind):
  data_config.tokenizer = kind
  code = (
    'import sys, types; from configs import base; from data import tokenizers; from pydoc_data import topics;'
    'data_config = base.get_config().data; data_config.tokenizer = sys.argv[1]; data_config.cache_dir = sys.argv[2];'
    'data_config.vocab_size = 700;'
    'documents = [types.SimpleNamespace(text=text) for _, text in sorted(topics.topics.items())[:40]];'
    'print(tokenizers.train(data_config, documents).fingerprint)'
  )
  other = subprocess.run(
    [sys.executable, '-c', code, kind, data_config.cache_dir],
    cwd=ROOT,
    check=True,
    text=True,
    capture_output=True,
    env=os.environ | {'PYTHONHASHSEED': '7'},
  )
  data_config.cache_dir += '2'
  assert tokenizers.train(data_config, documents).fingerprint == other.stdout.strip()


def test_importing_stays_light():
  code = 'import sys, data.store, data.tokenizers; sys.exit("jax" in sys.modules)'
  subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True)


def test_unknown_names_and_empty_corpora_are_refused(data_config):
  with pytest.raises(ValueError, match=r"'bpe' does not exist; choose one of sentencepiece-bpe, .*, file"):
    data_config.tokenizer = 'bpe'
  data_config.tokenizer = 'words'
  for texts in ([], ['', '\n']):
    with pytest.raises(ValueError, match='the corpus has no text'):
      tokenizers.train(data_config, [types.SimpleNamespace(text=text) for text in texts])


def test_large_corpora_are_sampled_evenly(data_config, monkeypatch):
  monkeypatch.setattr(training, '_TRAINING_CHARACTERS', 5)
  data_config.tokenizer = 'characters'
  tokenizer = tokenizers.train(data_config, [types.SimpleNamespace(text=c * 3) for c in 'abcd'])
  assert [tokenizer.decode(tokenizer.encode(c)) for c in 'abcd'] == ['a', '\ufffd', '\ufffd', 'd']


@pytest.mark.parametrize('kind', training.TRAINERS)
def test_long_lines_and_strange_characters_train(data_config, kind):
  strange = '\u2581\t\u2585\ufffd\0' + ''.join(map(chr, range(0x4E00, 0x4E00 + 1500)))
  data_config.tokenizer, data_config.vocab_size = kind, 2048
  tokenizer = tokenizers.train(data_config, [types.SimpleNamespace(text=x) for x in ('x' * 200_000, strange, 'a b c')])
  assert tokenizer.vocab_size <= 2048
  if tokenizer.lossless:
    assert tokenizer.decode(tokenizer.encode(strange)) == strange


def load(data_config, path):
  data_config.tokenizer, data_config.tokenizer_path = 'file', str(path)
  return tokenizers.train(data_config, [])


@pytest.mark.parametrize('kind', ['sentencepiece-bpe', 'sentencepiece-unigram', 'wordpiece', 'byte-bpe'])
def test_a_trained_model_file_loads(data_config, trained, kind, tmp_path):
  path = tmp_path / trained[kind].model_file
  path.write_bytes(trained[kind].model)
  tokenizer = load(data_config, path)
  assert tokenizer == trained[kind]
  assert tokenizer.lossless == trained[kind].lossless


def sentencepiece_file(path, documents, **options):
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=(document.text for document in documents),
    model_writer=model,
    vocab_size=500,
    minloglevel=2,
    max_sentence_length=1 << 20,
    **options,
  )
  path.write_bytes(model.getvalue())
  return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def test_a_foreign_sentencepiece_model_encodes_and_decodes_as_the_library(data_config, documents, tmp_path):
  processor = sentencepiece_file(tmp_path / 'foreign.model', documents)
  tokenizer = load(data_config, tmp_path / 'foreign.model')
  text = 'The class  statement\nﬁrst: value'
  ids = tokenizer.encode(text).tolist()
  assert ids == processor.encode(text)
  assert tokenizer.decode(ids) == processor.decode(ids)
  assert tokenizer.eos_id == processor.eos_id()
  assert not tokenizer.lossless
  assert '\ufffd' in tokenizer.decode(tokenizer.encode('😀'))


@pytest.mark.parametrize(
  'options',
  [
    {'add_dummy_prefix': True},
    {'remove_extra_whitespaces': True},
    {'normalization_rule_name': 'nfkc'},
    {'byte_fallback': False},
  ],
)
def test_a_sentencepiece_model_that_changes_text_is_not_called_lossless(data_config, documents, tmp_path, options):
  faithful = {
    'add_dummy_prefix': False,
    'remove_extra_whitespaces': False,
    'normalization_rule_name': 'identity',
    'byte_fallback': True,
  }
  sentencepiece_file(tmp_path / 'changing.model', documents, model_type='bpe', **faithful | options)
  assert not load(data_config, tmp_path / 'changing.model').lossless
  sentencepiece_file(tmp_path / 'faithful.model', documents, model_type='bpe', **faithful)
  assert load(data_config, tmp_path / 'faithful.model').lossless


def test_truncation_and_added_tokens_of_a_file_do_not_apply(data_config, trained, tmp_path):
  tokenizer = library.Tokenizer.from_str(trained['byte-bpe'].model.decode())
  tokenizer.enable_truncation(4)
  tokenizer.enable_padding(length=64)
  tokenizer.save(str(tmp_path / 'tokenizer.json'))
  loaded = load(data_config, tmp_path / 'tokenizer.json')
  text = 'a text longer than four tokens <|endoftext|>'
  assert loaded.encode(text).tolist() == trained['byte-bpe'].encode(text).tolist()
  assert loaded.decode(loaded.encode(text)) == text


def test_unusable_files_are_refused_in_words(data_config, documents, tmp_path):
  with pytest.raises(FileNotFoundError, match=r"data.tokenizer_path is '.*missing.model', which is no file"):
    load(data_config, tmp_path / 'missing.model')
  with pytest.raises(ValueError, match=r'must be a sentencepiece .model or a tokenizer.json'):
    load(data_config, tmp_path / 'vocab.txt')
  for name in ('broken.model', 'broken.json'):
    (tmp_path / name).write_text('{}')
    with pytest.raises(ValueError, match='no readable tokenizer'):
      load(data_config, tmp_path / name)
  sentencepiece_file(tmp_path / 'endless.model', documents, eos_id=-1)
  with pytest.raises(ValueError, match=r'no token that ends a document: one of </s>, <\|endoftext\|>'):
    load(data_config, tmp_path / 'endless.model')
