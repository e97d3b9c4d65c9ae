"""The GPU benchmarks from start to end on the CPU, and the workers that may hang or crash."""

import json
import pathlib
import subprocess
import sys

import pytest

from benchmarks import gpu, gpu_contestants, gpu_worker, plain_configs

ROOT = pathlib.Path(__file__).resolve().parents[2]
_FAULTY = '''
import os, time
from benchmarks import gpu_worker
def work(request, say):
  for item in request['items']:
    say(item)
    print('no answer')
    if item == 'crash':
      os._exit(3)
    if item == 'hang':
      time.sleep(60)
    yield item.upper()
gpu_worker.serve({'work': work})
'''


def _dry_run(name, folder):
  subprocess.run([sys.executable, '-m', f'benchmarks.{name}', '--dry_run', f'--out={folder}'], cwd=ROOT, check=True,
                 timeout=600)
  assert (folder / f'{name}.md').read_text()
  return json.loads((folder / f'{name}.json').read_text())


@pytest.mark.slow
def test_the_benchmark_of_attention_runs_without_a_gpu(tmp_path):
  record = _dry_run('attention_gpu', tmp_path)
  assert all(case['passed'] for case in record['numerics'].values())
  assert list(record['cells']) == [cell.name for cell in gpu_contestants.cells(dry_run=True)]
  for cell in record['cells'].values():
    assert all(cell['contestants']['ours'][direction]['ms'] > 0 for direction in ('forward', 'backward'))
    assert 'NVIDIA' in cell['contestants']['cudnn']['forward']['error']
  assert (tmp_path / 'attention_gpu.png').stat().st_size > 10_000


@pytest.mark.slow
def test_the_benchmark_of_training_runs_without_a_gpu(tmp_path):
  cases = _dry_run('train_gpu', tmp_path)['cases']
  assert len(cases) == 3
  assert all(case['tokens_per_second'] > 0 and case['loss_last'] > 0 for case in cases.values())


@pytest.mark.parametrize('fault, words', [('crash', 'ended with status 3'), ('hang', 'nothing was heard')])
def test_a_worker_that_dies_says_where_and_the_next_request_starts_another(fault, words):
  worker = gpu_worker.Worker(sys.executable, '-c', _FAULTY)
  results = []
  with pytest.raises(gpu_worker.Died, match=words) as death:
    results += worker.stream('work', 10, items=['good'])
    for result in worker.stream('work', 10, items=['first', fault, 'last']):
      results.append(result)
  assert results == ['GOOD', 'FIRST'] and death.value.doing == fault
  assert list(worker.stream('work', 10, items=['again'])) == ['AGAIN']
  worker.kill()


def test_programs_take_turns():
  calls = []
  programs = {name: lambda i, name=name: calls.append(name) for name in ('a', 'b')}
  times = gpu.interleave(programs, dict.fromkeys(programs, lambda result: None), seconds=0.0, burst=0.0)
  assert [len(seconds) for seconds in times.values()] == [3, 3]
  assert calls[-6:] == ['a', 'b'] * 3


def test_ptxas_says_what_spills(tmp_path):
  (tmp_path / 'kernel_0.ptxas').write_text(
    'ptxas info    : (C7512) Potential Performance Loss: wgmma is serialized\n'
    'ptxas warning : Registers are spilled to local memory, 692 bytes spill stores, 736 bytes spill loads\n'
    'ptxas info    : Used 168 registers, 1 barriers\n')
  report, = gpu.ptxas_reports(tmp_path)
  assert report == {'kernel': 'kernel', 'registers': 168, 'spill_bytes': 692,
                    'warnings': ['C7512 Potential Performance Loss: wgmma is serialized']}
  assert not list(tmp_path.iterdir())


def test_configs_can_be_read_without_ml_collections():
  code = '''
import sys
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *args: None if name == 'ml_collections' else real(name, *args)
from benchmarks import plain_configs
config = plain_configs.load('llama', '8b')
assert type(config) is plain_configs.ConfigDict
print(config.model.embed_dim, config.optimizer.beta2)
'''
  plain = subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True, capture_output=True, text=True).stdout
  config = plain_configs.load('llama', '8b')
  assert plain.split() == [str(config.model.embed_dim), str(config.optimizer.beta2)]
