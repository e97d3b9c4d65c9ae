"""Runs of several processes on this machine: the same as one process, stopped together, and ended when one is lost."""

import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from training import checkpoints, metrics

ROOT = pathlib.Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def arguments(tmp_path_factory):
  rng = np.random.default_rng(0)
  words = ['the', 'cat', 'dog', 'sees', 'hears', 'old', 'young', 'red', 'house', 'tree', 'and', 'runs', 'sleeps']
  path = tmp_path_factory.mktemp('corpus') / 'text.txt'
  path.write_text('\n\n'.join(' '.join(rng.choice(words, 60)) + '.' for _ in range(40)))
  values = {
    'data.corpus': 'text',
    'data.path': path,
    'data.document': 'blank-line',
    'data.tokenizer': 'sentencepiece-bpe',
    'data.vocab_size': 300,
    'data.validation_fraction': 0.2,
    'data.sequence_length': 16,
    'data.batch_tokens': 256,
    'model.num_layers': 2,
    'model.embed_dim': 32,
    'model.num_heads': 2,
    'model.dropout_rate': 0.1,
    'optimizer.learning_rate': 0.01,
    'optimizer.warmup': 4,
    'optimizer.ema_decay': 0.9,
    'mesh.fsdp': 8,
    'zero_stage': 3,
    'train.steps': 20,
    'train.log_every': 1,
    'train.eval_every': 10,
    'train.checkpoint_every': 5,
    'train.sample_tokens': 4,
    'train.tensorboard': False,
  }
  return ['--config=configs/base.py', *(f'--config.{key}={value}' for key, value in values.items())]


def start(processes, workdir, arguments, *more):
  """Of eight devices in all; process 1 is the second one."""
  environment = {**os.environ, 'DEVICES': str(8 // processes), 'PYTHON': sys.executable, 'XLA_FLAGS': ''}
  return subprocess.Popen(
    [ROOT / 'launch/local.sh', str(processes), *arguments, f'--workdir={workdir}', *more],
    cwd=ROOT,
    env=environment,
    text=True,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    start_new_session=True,
  )


def run(*args):
  process = start(*args)
  output, _ = process.communicate(timeout=500)
  return process.returncode, output


def lines(workdir):
  return [
    {key: value for key, value in line.items() if key not in ('seconds', 'tokens_per_second', 'mfu')}
    for line in metrics.read_metrics(workdir)
  ]


def assert_near(workdir, other, tolerance):
  ours, theirs = lines(workdir), lines(other)
  assert len(ours) == len(theirs) and [line.keys() for line in ours] == [line.keys() for line in theirs]
  for one, two in zip(ours, theirs, strict=True):
    np.testing.assert_allclose(list(one.values()), list(two.values()), rtol=tolerance, atol=1e-7)


@pytest.fixture(scope='module')
def alone(arguments, tmp_path_factory):
  """The run of one process of eight devices."""
  workdir = tmp_path_factory.mktemp('alone')
  status, output = run(1, workdir, arguments)
  assert status == 0, output
  return workdir


@pytest.fixture(scope='module')
def together(arguments, tmp_path_factory):
  """The run of two processes of four devices each."""
  workdir = tmp_path_factory.mktemp('together')
  status, output = run(2, workdir, arguments)
  assert status == 0, output
  return workdir, output


def test_two_processes_are_one(alone, together):
  workdir, output = together
  assert [line['step'] for line in lines(workdir) if 'loss' in line] == list(range(1, 21))
  assert_near(workdir, alone, 1e-5)
  names = lambda directory: sorted(path.name for path in directory.iterdir())
  assert names(workdir) == names(alone)
  assert output.count('step 20/20') == 1
  assert not re.search(r'^\[1\] .*(step|data:|model:)', output, re.MULTILINE)  # the second process says nothing
  stored = checkpoints.Checkpoints(workdir / 'checkpoints').open_arrays(20)
  assert sorted(path.name for path in (workdir / 'checkpoints/20/checksums').glob('*.json')) == ['0.json', '1.json']
  assert any(len(spec.checksums) == 8 for spec in stored.stored.values())


ROWS = """
import hashlib, json, sys, train
known, overrides = train.parse(sys.argv[1:])
import jax, parallel, data, objectives
from training import configs, console, program, resolution, run
config = configs.load(known.config, overrides)
parallel.hosts.start(known.coordinator, known.num_processes, known.process_id)
dataset = run.read_data(config, console.make_silent_console())
config = resolution.resolve(config, dataset.tokenizer)
own = parallel.hosts.local_rows(program.build(config).batch_shardings, 16)
ids = []
def examples(rows, seeds):
  ids.append(seeds.tolist())
  return rows
batches = data.train_batches(dataset, 16, config.seed, examples, False, own)
found = [
  {int(i): hashlib.sha256(row.tobytes()).hexdigest() for i, row in zip(own, next(batches)['tokens'], strict=True)}
  for _ in range(3)
]
print('ROWS', json.dumps([own.tolist(), ids[:3], found]))
"""


def rows(processes, arguments):
  command = [sys.executable, '-c', ROWS, *arguments, '--workdir=none', '--coordinator=127.0.0.1:8471']
  environment = {**os.environ, 'XLA_FLAGS': f'--xla_force_host_platform_device_count={8 // processes}'}
  started = [
    subprocess.Popen(
      [*command, f'--num_processes={processes}', f'--process_id={i}'],
      cwd=ROOT,
      env=environment,
      text=True,
      stdout=subprocess.PIPE,
    )
    for i in range(processes)
  ]
  found = [json.loads(re.search('ROWS (.*)', process.communicate(timeout=300)[0])[1]) for process in started]
  batches = [{}, {}, {}]
  for own, ids, tokens in found:
    for batch, seeds, texts in zip(batches, ids, tokens, strict=True):
      batch |= {row: (seed, texts[str(row)]) for row, seed in zip(own, seeds, strict=True)}
  return [len(own) for own, _, _ in found], batches


def test_rows_are_the_same_and_each_process_makes_its_own(arguments):
  whole, expected = rows(1, arguments)
  shares, batches = rows(2, arguments)
  assert whole == [16] and shares == [8, 8] and batches == expected


@pytest.mark.parametrize('before, after', [(2, 1), (1, 2)])
def test_a_run_goes_on_with_other_processes_mesh_and_stage(before, after, arguments, alone, tmp_path):
  status, output = run(before, tmp_path, arguments, '--stop_after=7')
  assert status == 75, output
  status, output = run(after, tmp_path, arguments, '--config.mesh.fsdp=2', '--config.zero_stage=0')
  assert status == 0 and 'going on from the checkpoint of step 7' in output, output
  assert_near(tmp_path, alone, 1e-4)


def processes_of(launched):
  """Process ids by --process_id."""
  found = {}
  for path in pathlib.Path('/proc').glob('[0-9]*/cmdline'):
    with contextlib.suppress(OSError):
      words = path.read_bytes().decode().split('\0')
      if os.getsid(int(path.parent.name)) == launched.pid and any(word.endswith('train.py') for word in words):
        found[next(int(word.partition('=')[2]) for word in words if word.startswith('--process_id='))] = int(
          path.parent.name
        )
  return found


@contextlib.contextmanager
def training(workdir, arguments, *more):
  """A long run of two processes, past step 12."""
  launched = start(2, workdir, arguments, '--config.train.steps=100000', '--config.train.eval_every=0', *more)
  try:
    seen = []
    for line in launched.stdout:
      seen.append(line)
      if line.startswith('step 12/'):
        break
    else:
      pytest.fail(''.join(seen))
    yield launched, processes_of(launched)
  finally:
    with contextlib.suppress(ProcessLookupError):
      os.killpg(launched.pid, signal.SIGKILL)
    launched.wait()


@pytest.mark.parametrize('number, process', [(signal.SIGTERM, 1), (signal.SIGINT, 1), (signal.SIGTERM, 0)])
def test_a_signal_to_one_stops_both_at_the_same_step(number, process, arguments, tmp_path):
  with training(tmp_path, arguments) as (launched, found):
    os.kill(found[process], number)
    output, _ = launched.communicate(timeout=120)
    assert launched.returncode == 75, output
  [step] = re.findall(r'stopped and saved at step ([\d,]+)', output)
  saved = checkpoints.Checkpoints(tmp_path / 'checkpoints').latest_step()
  assert saved == int(step.replace(',', '')) == lines(tmp_path)[-1]['step']


@pytest.mark.parametrize('number, process', [(signal.SIGKILL, 1), (signal.SIGSTOP, 1), (signal.SIGKILL, 0)])
def test_a_lost_process_ends_the_other(number, process, arguments, tmp_path):
  with training(tmp_path, arguments, '--config.train.step_timeout=15') as (launched, found):
    os.kill(found[process], number)
    start = time.monotonic()
    other = found[1 - process]
    while pathlib.Path(f'/proc/{other}/exe').exists() and time.monotonic() < start + 60:
      time.sleep(0.2)
    seconds = time.monotonic() - start
    os.kill(found[process], signal.SIGKILL) if number == signal.SIGSTOP else None
    output, _ = launched.communicate(timeout=60)
  assert seconds < 15 + 10, output
  assert launched.returncode not in (0, 75), output
  if process:  # where the first one dies, JAX may be faster to end the others, in its own words
    assert re.search(r'error: process 0 of 2 ends: (nothing went on for 15 s|the exchange with)', output), output
    assert f'goes on from the last checkpoint in {tmp_path}' in output
  saved = checkpoints.Checkpoints(tmp_path / 'checkpoints')
  fields, metadata = saved.restore_fields(saved.latest_step(), ('params', 'opt_state', 'ema', 'updates'))
  assert metadata['progress']['step'] == saved.latest_step() >= 5 and fields['params']
