"""The GPU benchmarks from start to end on the CPU, and the workers that may hang or crash."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import (
  attention_gpu_report,
  attention_gpu_worker,
  gpu,
  gpu_checks,
  gpu_contestants,
  gpu_numerics,
  gpu_worker,
  plain_configs,
  train_gpu_worker,
)
from pallas_kernels import AttentionSpec, attention

ROOT = pathlib.Path(__file__).resolve().parents[2]
_FAULTY = """
import os, time
from benchmarks import gpu_worker
def work(request, say):
  for item in request['items']:
    say(item, request.get('within'))
    print('no answer')
    if item == 'crash':
      os._exit(3)
    if item == 'hang':
      time.sleep(60)
    yield item.upper()
gpu_worker.serve({'work': work})
"""


def _dry_run(name, folder):
  subprocess.run(
    [sys.executable, '-m', f'benchmarks.{name}', '--dry_run', f'--out={folder}'], cwd=ROOT, check=True, timeout=600
  )
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
    assert list(cell['contestants']['ours, unfused']) == ['backward']
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
    for result in worker.stream('work', 2, items=['first', fault, 'last']):
      results.append(result)
  assert results == ['GOOD', 'FIRST'] and death.value.doing == fault
  assert list(worker.stream('work', 10, items=['again'])) == ['AGAIN']
  worker.kill()


def test_what_may_take_only_so_long_dies_after_it_and_not_after_the_patience_of_the_request():
  worker = gpu_worker.Worker(sys.executable, '-c', _FAULTY)
  list(worker.stream('work', 60, items=['started']))
  with pytest.raises(gpu_worker.Died, match='nothing was heard for 1 s, while doing: hang'):
    list(worker.stream('work', 60, items=['first', 'hang'], within=1))
  worker.kill()


@pytest.mark.parametrize('causal, scale', [(True, None), (False, 0.3)])
def test_the_definition_in_chunks_is_the_definition(causal, scale, monkeypatch):
  monkeypatch.setattr(gpu_checks, '_CHUNK', 16)
  q, k, v, cotangent = (jax.random.normal(jax.random.key(n), (2, 48, heads, 8)) for n, heads in enumerate((4, 2, 2, 4)))
  spec = AttentionSpec(causal=causal, scale=scale)
  out, backward = jax.vjp(lambda *qkv: attention(*qkv, spec, implementation='reference'), q, k, v)
  got = gpu_checks.definition(q, k, v, cotangent, causal=causal, scale=scale)
  want = gpu_checks.named((out, backward(cotangent)))
  assert set(got) == set(want) == {'out', 'gradient of q', 'gradient of k', 'gradient of v'}
  for name in want:
    np.testing.assert_allclose(got[name], want[name], atol=1e-5, err_msg=name)


_CELL = gpu_contestants.Cell(64, 64, True, 2, 2, 1)


def _faults(damage, which='both', entrant='ours', implementation='blockwise'):
  """What the worker finds wrong with the results of a program that `damage(result, number of the call)` changes."""
  contestant, calls = gpu_contestants.contestants(implementation)['ours'], []
  if entrant == 'ours, unfused':
    contestant = dataclasses.replace(contestant, forward='ours')
  sound = contestant.prepare(_CELL, which)()

  def run(i):
    calls.append(i)
    return damage(sound(i), len(calls))

  expected = lambda dtype, scale: attention_gpu_worker._definition(_CELL, lambda *said: None, dtype, scale)
  return attention_gpu_worker._faults(contestant, entrant, which, _CELL, run, 20, expected, lambda *said: None)


def _change_q(factor):
  """Multiplies the gradient of q of the last call of 21 by a factor."""
  return lambda result, call: result if call < 21 else (result[0], (result[1][0] * factor, *result[1][1:]))


def test_a_timed_result_must_be_right_in_every_call():
  assert _faults(lambda result, call: result) == []
  assert _faults(lambda result, call: result, 'forward') == []
  (wrong,) = _faults(lambda out, call: 1.03 * out, 'forward')
  assert wrong.startswith('out is 3.') and wrong.endswith('e-02 from float32, at most 1.5e-02')
  assert _faults(lambda out, call: out + jnp.where(call == 1, jnp.nan, 0), 'forward')[0].startswith('out is not finite')
  (moving,) = _faults(lambda out, call: out.at[0, 0, 0, 0].add(1e-2) if call == 21 else out, 'forward')
  assert 'out moves by' in moving and moving.endswith('at most 0.0e+00')


def test_of_timed_results_only_the_gradient_of_q_of_one_kernel_for_all_may_move_and_little():
  slightly, more = _change_q(jnp.bfloat16(1 + 2**-7)), _change_q(jnp.bfloat16(1.1))
  assert 'gradient of q moves by' in _faults(slightly, entrant='ours, unfused')[0]
  assert 'gradient of q moves by' in _faults(more)[0]
  one_number = lambda result, call: (
    result if call < 21 else (result[0], (result[1][0].at[0, 40, 0, 0].multiply(1 + 2**-7), *result[1][1:]))
  )
  assert _faults(one_number) == [] and _faults(one_number, entrant='ours, unfused')


def test_a_wrong_result_is_shown_as_a_word_with_its_reason():
  record = {'ours': {'forward': {'wrong': ['out is far']}, 'backward': {'tflops': 5.0}}}
  results = {
    'numerics': {},
    'matmul_tflops': None,
    'deaths': [],
    'not_measured': [],
    'cells': {'cell': {'name': 'cell', **dataclasses.asdict(_CELL), 'contestants': record}},
  }
  table = attention_gpu_report.table(results, ['ours', 'cudnn'])
  assert '| cell | forward | wrong |  |' in table and 'ours, forward: wrong: out is far (cell)' in table


def test_each_pass_is_compared_and_blamed_apart():
  items = gpu_numerics.items(dry_run=False)
  assert {'causal (forward)', 'causal (unfused)', 'causal (fused)', 'softcap (unfused)'} < set(items)
  assert 'softcap (fused)' not in items and 'causal, head_dim 192 (fused)' not in items
  assert max(case.kv_len for case, _ in items.values()) >= 4096 and any(case.q_len == 1 for case, _ in items.values())
  entrants = gpu_contestants.contestants('hopper')
  assert entrants['ours'].passes == ('forward', 'both') and entrants['ours, unfused'].passes == ('both',)


def test_what_the_compiler_plans_beyond_the_memory_of_the_device_is_not_run():
  planned = train_gpu_worker.memory(jax.jit(lambda x: x @ x, donate_argnums=0).lower(jnp.ones((64, 64))).compile())
  assert planned['planned_bytes'] >= planned['argument_bytes'] == 4 * 64 * 64
  assert train_gpu_worker.too_large(planned, None) == train_gpu_worker.too_large(planned, 1 << 20) == ''
  words = train_gpu_worker.too_large({'planned_bytes': 132 << 30}, 78 << 30)
  assert '132.0 GiB' in words and '78.0 GiB' in words


def test_the_cpu_is_always_among_the_platforms():
  assert gpu.with_cpu(None) is None and not gpu.with_cpu('')  # all that there are
  assert gpu.with_cpu('cuda') == 'cuda,cpu' and gpu.with_cpu('cuda,cpu') == 'cuda,cpu'


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
    'ptxas info    : Used 168 registers, 1 barriers\n'
  )
  (report,) = gpu.ptxas_reports(tmp_path)
  assert report == {
    'kernel': 'kernel',
    'registers': 168,
    'spill_bytes': 692,
    'warnings': ['C7512 Potential Performance Loss: wgmma is serialized'],
  }
  assert not list(tmp_path.iterdir())


def test_configs_can_be_read_without_ml_collections():
  code = """
import sys
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *args: None if name == 'ml_collections' else real(name, *args)
from benchmarks import plain_configs
config = plain_configs.load('llama', '8b')
assert type(config) is plain_configs.ConfigDict
print(config.model.embed_dim, config.optimizer.beta2)
"""
  plain = subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True, capture_output=True, text=True).stdout
  config = plain_configs.load('llama', '8b')
  assert plain.split() == [str(config.model.embed_dim), str(config.optimizer.beta2)]
