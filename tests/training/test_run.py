"""Whole small runs: resumption, signals, bad steps, early stopping, what a run directory holds."""

import functools
import json
import math
import os
import pathlib
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import objectives
import training
from training import checkpoints, configs, loop, metrics, program

ROOT = pathlib.Path(__file__).resolve().parents[2]
VOLATILE = {'seconds', 'tokens_per_second', 'mfu'}


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
  """Forty documents of words in random order, in one file."""
  rng = np.random.default_rng(0)
  words = ['the', 'cat', 'dog', 'sees', 'hears', 'old', 'young', 'red', 'house', 'tree', 'and', 'runs', 'sleeps']
  text = '\n\n'.join(' '.join(rng.choice(words, 60)) + '.' for _ in range(40))
  path = tmp_path_factory.mktemp('corpus') / 'text.txt'
  path.write_text(text)
  return path


@pytest.fixture(scope='module')
def make_config(corpus):
  """Builds a small config on the corpus; keyword names are key paths with __ for a dot."""

  def make(**changes):
    values = {
      'data__corpus': 'text',
      'data__path': str(corpus),
      'data__document': 'blank-line',
      'data__tokenizer': 'bytes',
      'data__validation_fraction': 0.2,
      'data__sequence_length': 32,
      'data__batch_tokens': 512,
      'model__num_layers': 2,
      'model__embed_dim': 32,
      'model__num_heads': 2,
      'model__dropout_rate': 0.1,
      'model__attention__dropout_rate': 0.1,
      'optimizer__learning_rate': 0.01,
      'optimizer__schedule': 'constant',  # which the length of a run does not change: one program for all
      'optimizer__warmup': 4,
      'mesh__data': 1,
      'train__steps': 40,
      'train__log_every': 1,
      'train__eval_every': 8,
      'train__checkpoint_every': 16,
      'train__tensorboard': False,
      **changes,
    }
    return configs.load('configs/base.py', [f'{key.replace("__", ".")}={value}' for key, value in values.items()])

  return make


def lines(workdir):
  """metrics.jsonl without what a clock decides."""
  return [{k: v for k, v in line.items() if k not in VOLATILE} for line in metrics.read_metrics(workdir)]


def summary(workdir):
  return json.loads((workdir / 'summary.json').read_text())


def test_training_learns_and_leaves_a_complete_directory(make_config, tmp_path):
  sampled = []

  def sampler(config, decoder, params, tokenizer, prompts):
    sampled.append((prompts, config.train.sample_tokens))
    return ['text'] * len(prompts)

  assert training.train(make_config(train__tensorboard=True, train__sample_every=20), tmp_path, sampler=sampler)
  result, log = summary(tmp_path), lines(tmp_path)
  assert {
    'step',
    'tokens',
    'params',
    'final_loss',
    'eval_loss',
    'bits_per_byte',
    'perplexity',
    'tokens_per_second',
    'seconds',
    'params_sha256',
  } <= result.keys()
  assert (result['step'], result['tokens']) == (40, 40 * 512)
  assert result['eval_loss'] < 0.7 * log[0]['loss'] and log[0]['loss'] == pytest.approx(math.log(320), rel=0.05)
  assert result['bits_per_byte'] == pytest.approx(
    result['eval_loss'] / math.log(2), rel=0.01
  )  # bytes: one a token, and EOS
  assert [line['step'] for line in log if 'eval/loss' in line] == [8, 16, 24, 32, 40]
  assert all((tmp_path / name).exists() for name in ('config.json', 'tokenizer', 'plots/loss.png', 'samples.txt'))
  assert any((tmp_path / 'tensorboard').iterdir())
  assert sampled == [([''], 64)] * 2  # at 20 and at 40
  run = training.load_run(tmp_path)
  assert run.step == 40 and run.metrics[-1]['step'] == 40
  assert run.tokenizer.decode(run.tokenizer.encode('cat')) == 'cat'


def test_a_resumed_run_is_the_straight_run_bit_for_bit(make_config, tmp_path):
  straight, resumed = tmp_path / 'straight', tmp_path / 'resumed'
  assert training.train(make_config(), straight)
  assert not training.train(make_config(), resumed, stop_after=20)
  assert not (resumed / 'summary.json').exists()
  assert training.train(make_config(), resumed)
  assert lines(straight) == lines(resumed)
  assert summary(straight)['params_sha256'] == summary(resumed)['params_sha256']


def test_a_finished_run_stays_as_it_is(make_config, tmp_path):
  config = make_config(train__steps=8)
  training.train(config, tmp_path)
  before = summary(tmp_path)['params_sha256'], lines(tmp_path)
  assert training.train(config, tmp_path)
  assert (summary(tmp_path)['params_sha256'], lines(tmp_path)) == before


def test_a_run_goes_on_longer_but_not_with_another_model(make_config, tmp_path):
  make = functools.partial(make_config, optimizer__schedule='cosine')
  training.train(make(train__steps=8), tmp_path)
  with pytest.raises(configs.ConfigError, match='train.steps was 8 and is 10'):
    training.train(make(train__steps=10), tmp_path)
  assert training.train(make(train__steps=10, train__allow_new_length=True), tmp_path)
  assert summary(tmp_path)['step'] == 10
  with pytest.raises(configs.ConfigError, match='optimizer.learning_rate was 0.01 and is 0.5'):
    training.train(make(optimizer__learning_rate=0.5), tmp_path)


def test_the_run_of_an_older_version_goes_on(corpus, tmp_path):
  """Its directory holds a config.json with the keys of that version."""
  values = json.loads((ROOT / 'tests' / 'golden' / 'old_config.json').read_text())
  values['data']['path'] = str(corpus)
  config = configs.from_json(values)
  assert not training.train(config, tmp_path, stop_after=2)
  (tmp_path / 'config.json').write_text(json.dumps(values))
  assert training.load_run(tmp_path).config == config
  assert training.train(config, tmp_path) and [line['step'] for line in lines(tmp_path)][:3] == [1, 2, 3]
  assert json.loads((tmp_path / 'config.json').read_text())['model']['attention']['qk_norm'] is True


_STILL = {'model__dropout_rate': 0.0, 'model__attention__dropout_rate': 0.0, 'model__vocab_size': 320}


def random_batch(seed, rows=16, row_length=33):
  tokens = np.random.default_rng(seed).integers(0, 256, (rows, row_length), dtype=np.int32)
  segment_ids = np.ones_like(tokens)
  segment_ids[seed % rows, 20:] = 2
  segment_ids[(seed + 1) % rows, 25:] = 0
  positions = np.tile(np.arange(row_length, dtype=np.int32), (rows, 1))
  return objectives.Causal().examples({'tokens': tokens, 'segment_ids': segment_ids, 'positions': positions}, None)


def test_accumulation_gives_the_step_of_the_whole_batch(make_config):
  results = []
  for accumulation_steps in (1, 4):
    compiled = program.build(make_config(optimizer__accumulation_steps=accumulation_steps, **_STILL))
    state, metrics = compiled.step(compiled.init(), random_batch(3))
    results.append((state.params, metrics))
  (whole, whole_metrics), (parts, parts_metrics) = results
  for key in ('total_loss', 'grad_norm', 'loss', 'accuracy'):
    np.testing.assert_allclose(whole_metrics[key], parts_metrics[key], rtol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), whole, parts)


def test_a_checkpoint_restores_across_meshes(make_config, tmp_path):
  still = {'model__dropout_rate': 0.0, 'model__attention__dropout_rate': 0.0}
  training.train(make_config(**still, mesh__data=8), tmp_path / 'a', stop_after=16)
  training.train(make_config(**still, mesh__fsdp=8, zero_stage=3), tmp_path / 'a', stop_after=24)
  training.train(make_config(**still), tmp_path / 'a')
  training.train(make_config(**still), tmp_path / 'b')
  for a, b in zip(lines(tmp_path / 'a'), lines(tmp_path / 'b'), strict=True):
    np.testing.assert_allclose(list(a.values()), list(b.values()), rtol=2e-3)


def test_a_step_that_is_not_finite_changes_nothing(make_config):
  compiled = program.build(make_config(model__vocab_size=320, optimizer__ema_decay=0.9))
  state = compiled.init()
  state, _ = compiled.step(state, random_batch(0))
  poisoned = {**state.params, 'final_norm': {'scale': state.params['final_norm']['scale'].at[3].set(jnp.nan)}}
  state = jax.tree.map(jnp.copy, type(state)(state.updates, poisoned, state.opt_state, state.ema))
  before = jax.device_get(state)
  state, result = compiled.step(state, random_batch(1))
  assert result['finite'].value == 0
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), before)


def test_bad_steps_in_a_row_abort_and_the_last_checkpoint_is_named(make_config, tmp_path, monkeypatch):
  """From step 20 on the loss is NaN."""
  make_step = program.make_step

  def poisoned(loss, *args, **kwargs):
    step = make_step(loss, *args, **kwargs)

    def wrapped(state, batch):
      new, metrics = step(state, batch)
      bad = state.updates >= 20
      return (
        jax.tree.map(lambda a, b: jnp.where(bad, b, a), new, state),
        {**metrics, 'finite': metrics['finite']._replace(total=jnp.where(bad, 0.0, metrics['finite'].total))},
      )

    return wrapped

  monkeypatch.setattr(program, 'make_step', poisoned)
  with pytest.raises(loop.TrainingAborted, match='3 steps in a row.*step 23.*checkpoint is of step 16'):
    training.train(make_config(train__max_bad_steps=3), tmp_path)
  assert lines(tmp_path)[-1]['bad_steps'] == 2


def test_early_stopping_ends_a_run_that_does_not_get_better(make_config, tmp_path):
  """A learning rate this small rounds to no change: no evaluation is better than the first."""
  config = make_config(optimizer__learning_rate=1e-30, train__early_stopping_patience=2, train__eval_every=2)
  assert training.train(config, tmp_path)
  evaluations = [line['eval/loss'] for line in lines(tmp_path) if 'eval/loss' in line]
  assert summary(tmp_path)['step'] == 6 and evaluations == evaluations[:1] * 3


def test_averaged_parameters_are_what_is_evaluated_and_loaded(make_config, tmp_path):
  training.train(make_config(optimizer__ema_decay=0.99, train__steps=8), tmp_path)
  fields, _ = checkpoints.Checkpoints(tmp_path / 'checkpoints').restore_fields(8, ('params', 'ema'))
  loaded = training.load_run(tmp_path).params['embedding']['table']
  np.testing.assert_array_equal(loaded, fields['ema']['embedding']['table'])
  assert np.abs(loaded - fields['params']['embedding']['table']).max() > 1e-4


def test_a_run_can_start_from_another(make_config, tmp_path):
  training.train(make_config(), tmp_path / 'first')
  training.train(make_config(init_from=str(tmp_path / 'first'), train__steps=4), tmp_path / 'second')
  assert lines(tmp_path / 'second')[0]['loss'] < lines(tmp_path / 'first')[0]['loss'] - 1
  with pytest.raises(configs.ConfigError, match='do not have the shapes'):
    training.train(make_config(init_from=str(tmp_path / 'first'), model__embed_dim=16), tmp_path / 'third')


@pytest.mark.slow
def test_every_optimizer_learns(make_config, tmp_path):
  rates = {'adam': 0.01, 'sgd': 0.1, 'rmsprop': 0.003, 'adafactor': 0.01, 'lion': 0.002, 'muon': 0.02}
  for name, rate in rates.items():
    training.train(
      make_config(
        optimizer__name=name,
        optimizer__learning_rate=rate,
        train__steps=12,
        train__log_every=100,
        train__eval_every=0,
        train__checkpoint_every=0,
      ),
      tmp_path / name,
    )
    log = lines(tmp_path / name)
    assert log[-2]['loss'] < log[0]['loss'] - 0.2, name


def test_model_vocabulary_must_hold_the_tokenizer(make_config, tmp_path):
  with pytest.raises(configs.ConfigError, match="smaller than the tokenizer's 257"):
    training.train(make_config(model__vocab_size=100), tmp_path)


def command(config_file, workdir, *overrides):
  return [sys.executable, 'train.py', f'--config={config_file}', f'--workdir={workdir}', *overrides]


@pytest.fixture
def overrides(make_config):
  """The small config as command line overrides of the base config."""
  return [f'--config.{key}={value}' for key, value in configs.flat(make_config()).items() if value != '']


def test_sigterm_saves_and_the_same_command_resumes(overrides, tmp_path):
  environment = {**os.environ, 'XLA_FLAGS': ''}
  slow = [*overrides, '--config.train.steps=100000', '--config.train.checkpoint_every=0', '--config.train.eval_every=0']
  process = subprocess.Popen(
    command('configs/base.py', tmp_path, *slow), cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE
  )
  for line in process.stdout:
    if line.startswith('step 5/'):
      process.send_signal(signal.SIGTERM)
      break
  rest = process.stdout.read()
  assert process.wait(timeout=120) == 75, rest
  saved = checkpoints.Checkpoints(tmp_path / 'checkpoints').latest_step()
  assert lines(tmp_path)[-1]['step'] == saved >= 5
  again = subprocess.run(
    command('configs/base.py', tmp_path, *slow, f'--stop_after={saved + 3}'),
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
  )
  assert again.returncode == 75 and f'checkpoint of step {saved}' in again.stdout, again.stderr
  assert lines(tmp_path)[-1]['step'] == saved + 3


@pytest.mark.slow
def test_sigkill_at_any_time_leaves_a_run_that_resumes(overrides, tmp_path):
  environment = {**os.environ, 'XLA_FLAGS': ''}
  often = [*overrides, '--config.train.checkpoint_every=2', '--config.train.steps=60']
  straight, killed = tmp_path / 'straight', tmp_path / 'killed'
  subprocess.run(
    command('configs/base.py', straight, *often), cwd=ROOT, env=environment, check=True, capture_output=True
  )
  for number in (5, 17, 33):
    process = subprocess.Popen(
      command('configs/base.py', killed, *often), cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE
    )
    for line in process.stdout:
      if line.startswith(f'step {number}/'):
        process.kill()
        break
    process.wait()
  subprocess.run(command('configs/base.py', killed, *often), cwd=ROOT, env=environment, check=True, capture_output=True)
  assert lines(straight) == lines(killed)
  assert summary(straight)['params_sha256'] == summary(killed)['params_sha256']


@pytest.mark.parametrize(
  'mistake, words',
  [
    ('--config.train.stepz=3', 'steps'),
    ('--config.model.num_heads=3', 'does not divide'),
    ('--config.data.path=/nowhere.txt', '/nowhere.txt'),
    ('--config.data.batch_tokens=1000', 'multiple of'),
    ('--config.train.steps=many', 'train.steps'),
  ],
)
def test_config_mistakes_end_with_status_1_and_words(mistake, words, overrides, tmp_path):
  result = subprocess.run(
    command('configs/base.py', tmp_path, *overrides, mistake), cwd=ROOT, capture_output=True, text=True, timeout=60
  )
  assert result.returncode == 1 and words in result.stderr and 'Traceback' not in result.stderr, result.stderr
