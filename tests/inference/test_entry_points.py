"""generate.py and evaluate.py on run directories made by hand."""

import io
import json
import math
import sys

import jax
import numpy as np
import pytest

import evaluate
import generate
import inference
import model as model_lib
import training
from configs import base
from data import tokenizers
from data.tokenizers.bytes import BytesTokenizer
from training import checkpoints, configs


def make_run(directory, scale):
  """A run with random parameters times `scale`, and a corpus of its own."""
  corpus = directory / 'corpus.txt'
  corpus.write_text('\n\n'.join(f'Document {i} of the corpus, überall.' for i in range(40)), encoding='utf-8')
  config = base.get_config()
  config.data.update(
    corpus='text',
    path=str(corpus),
    document='blank-line',
    tokenizer='bytes',
    sequence_length=32,
    batch_tokens=256,
    validation_fraction=0.25,
  )
  config.model.update(vocab_size=320, num_layers=1, embed_dim=16, num_heads=2)
  with config.unlocked():
    config.model = model_lib.resolve(config.model)
  workdir = directory / 'run'
  workdir.mkdir()
  (workdir / 'config.json').write_text(json.dumps(configs.to_json(config)))
  tokenizers.save(BytesTokenizer(), workdir / 'tokenizer')
  params = jax.tree.map(lambda leaf: leaf * scale, model_lib.build(config.model)[1])
  with checkpoints.Checkpoints(workdir / 'checkpoints') as saved:
    saved.save(7, {'params': params}, {})
  return workdir


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  return make_run(tmp_path_factory.mktemp('random'), 4.0)


@pytest.fixture(scope='module')
def uniform_workdir(tmp_path_factory):
  return make_run(tmp_path_factory.mktemp('uniform'), 0.0)


@pytest.fixture
def command(monkeypatch, capsys):
  """Runs the main function of an entry point: (status, standard output, standard error)."""

  def run(module, *arguments, stdin=b'', terminal=False):
    monkeypatch.setattr(sys, 'argv', [module.__name__, *arguments])
    monkeypatch.setattr(sys, 'stdin', io.TextIOWrapper(io.BytesIO(stdin)))
    monkeypatch.setattr(sys.stdin, 'isatty', lambda: terminal, raising=False)
    monkeypatch.setattr(sys.stdout, 'isatty', lambda: terminal)
    try:
      status = module.main()
    except SystemExit as stopped:
      status = stopped.code
    return status, *capsys.readouterr()

  return run


def test_one_prompt_gives_one_text_streamed_or_not(workdir, command):
  arguments = (f'--workdir={workdir}', '--prompt=Zwölf', '--max_new_tokens=40', '--seed=5', '--ignore_eos')
  [expected] = inference.generate(training.load_run(workdir), ['Zwölf'], max_new_tokens=40, seed=5, stop_at_eos=False)
  assert command(generate, *arguments) == (0, f'Zwölf{expected.text}\n', '')
  assert command(generate, *arguments, terminal=True) == (0, f'Zwölf{expected.text}\n', '')


def test_prompts_come_from_standard_input_a_line_each(workdir, command):
  status, out, _ = command(
    generate, f'--workdir={workdir}', '--max_new_tokens=4', '--num_beams=2', stdin='eins\nzwölf\n'.encode()
  )
  assert status == 0
  first, second = out.removesuffix('\n').split('\n---\n')
  assert first.startswith('eins') and second.startswith('zwölf')


@pytest.mark.parametrize(
  'arguments, stdin, status, words',
  [
    (['--prompt=x', '--top_p=2'], b'', 1, 'top_p is 2.0'),
    (['--prompt=x', '--step=3'], b'', 1, 'it has: 7'),
    ([], b'', 1, 'no prompt on standard input'),
    (['--prompt=-'], b'caf\xe9', 1, 'is no UTF-8 text'),
    (['--prompt=x', '--top_k=many'], b'', 2, 'invalid int value'),
    (['--prompt=x', '--temprature=1'], b'', 2, 'unrecognized arguments'),
  ],
)
def test_mistakes_in_generate_are_said_in_words(workdir, command, arguments, stdin, status, words):
  given, out, err = command(generate, f'--workdir={workdir}', *arguments, stdin=stdin)
  assert given == status and words in err and out == ''
  assert status == 2 or err.count('\n') == 1


def test_a_terminal_without_a_prompt_is_bad_usage(workdir, command):
  status, _, err = command(generate, f'--workdir={workdir}', terminal=True)
  assert status == 2 and 'give --prompt=TEXT' in err


@pytest.mark.parametrize('module', [generate, evaluate])
def test_a_directory_without_a_run_is_refused(tmp_path, command, module):
  arguments = ['--prompt=x'] if module is generate else []
  status, _, err = command(module, f'--workdir={tmp_path}', *arguments)
  assert status == 1 and 'holds no run' in err


def test_a_uniform_model_scores_log_of_the_vocabulary_on_a_file(uniform_workdir, command, tmp_path):
  text = tmp_path / 'text.txt'
  text.write_text('Ein Absatz.\n\nNoch einer, größer.\n', encoding='utf-8')
  out = tmp_path / 'out.json'
  status, table, _ = command(evaluate, f'--workdir={uniform_workdir}', f'--data={text}', f'--json={out}')
  result = json.loads(out.read_text())
  assert status == 0
  assert result['documents'] == 2 and result['step'] == 7 and result['data'] == str(text)
  assert result['tokens'] == result['bytes'] + 2  # a byte tokenizer, and an end for each document
  np.testing.assert_allclose(result['loss'], math.log(320), rtol=1e-5)
  np.testing.assert_allclose(result['perplexity'], 320, rtol=1e-4)
  np.testing.assert_allclose(result['bits_per_byte'], math.log2(320) * result['tokens'] / result['bytes'], rtol=1e-5)
  assert '320.00' in table and 'bits per byte' in table


def test_the_validation_split_is_the_default(uniform_workdir, command, tmp_path):
  out = tmp_path / 'out.json'
  status, _, _ = command(evaluate, f'--workdir={uniform_workdir}', f'--json={out}')
  result = json.loads(out.read_text())
  assert status == 0 and result['data'] == 'validation' and 0 < result['documents'] < 40


def test_a_corpus_that_is_gone_or_has_no_file_is_said_in_words(uniform_workdir, command):
  status, _, err = command(evaluate, f'--workdir={uniform_workdir}', '--data=/nowhere/*.txt')
  assert status == 1 and '/nowhere/*.txt' in err
