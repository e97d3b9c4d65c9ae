"""Layouts and estimates: of every array, of what is kept, and of what does not fit."""

import dataclasses
import json
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

import parallel
import plan as entry_point
import planning
from configs import base
from planning import compiling, setup, topology, tracing
from planning.estimate import estimate
from planning.plan import _halvings
from training import program

TINY = {'vocab_size': 512, 'num_layers': 2, 'embed_dim': 64, 'num_heads': 4, 'mlp_dim': 128}


def config_of(**changes):
  config = base.get_config()
  config.model.update(TINY)
  config.data.update(sequence_length=64, batch_tokens=32 * 64)
  config.update(changes)
  return planning.resolve(config)


def traced(problem, where):
  return lambda remat: tracing.trace(problem, remat, where)


def test_the_table_has_the_bytes_that_devices_hold():
  config = config_of(**{'mesh.data': 2, 'mesh.fsdp': 2, 'mesh.tensor': 2, 'zero_stage': 1})
  leaves, mesh_shape = planning.state_layout(config, 8)
  state = program.build(config).init()
  held = {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf.addressable_shards[0].data.nbytes
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.params)
  }
  assert {leaf.path: leaf.bytes for leaf in leaves if leaf.kind == 'parameters'} == held
  every = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state))
  assert sum(leaf.bytes for leaf in leaves) == every
  text = planning.layout_text(leaves, mesh_shape)
  assert 'data 2 x fsdp 2 x tensor 2' in text and len(text.splitlines()) == len(leaves) + 4


def test_recomputation_keeps_less():
  config = config_of(**{'precision.dtype': 'bfloat16', 'model.layer_loop': 'scan'})
  where = topology.parse('h200:1')
  problem = setup.Problem.of(config)
  by_remat = {remat: tracing.trace(problem, remat, where).row_bytes() for remat in ('none', 'selective', 'full')}
  assert by_remat['full'] <= by_remat['selective'] < by_remat['none']
  # Of a layer that is computed again its input is kept, in bfloat16; the head keeps its own and its gradient.
  stream = 64 * 64 * 2
  assert by_remat['full'] >= 2 * stream


def test_dimensions_that_tensor_parallelism_splits_are_divided_once():
  kept = tracing.Kept(((100, (4, 16)), (60, (64,)), (8, ())))
  assert kept.row_bytes() == 168
  assert kept.row_bytes({4: 2, 16: 2}) == 50 + 60 + 8


def test_every_objective_has_the_shapes_that_it_makes():
  for name, family in (('causal', 'decoder'), ('masked', 'encoder'), ('span_corruption', 'encoder_decoder')):
    config = base.get_config()
    config.model.update(TINY | {'family': family})
    config.objective.name = name
    config.data.update(sequence_length=64, batch_tokens=32 * 64)
    config = planning.resolve(config)
    problem = setup.Problem.of(config)
    batch = setup.batch_shapes(problem.row, 32)
    assert set(batch) == set(problem.task.batch_axes)
    assert all(leaf.shape[0] == 32 and leaf.dtype == np.int32 for leaf in batch.values())
    side = 'source_tokens' if family == 'encoder_decoder' else 'tokens'
    assert batch[side].shape[1] == 64


def test_stages_and_devices_divide_what_they_name():
  where, found = topology.parse('h200:8'), {}
  problem = setup.Problem.of(config_of())
  for stage in range(4):
    config = config_of(**{'mesh.data': 1, 'mesh.fsdp': 8, 'zero_stage': stage})
    found[stage] = estimate(problem, config, where, traced(problem, where)).bytes
  assert found[1]['optimizer'] < found[0]['optimizer'] / 7
  assert found[2]['gradients'] < found[1]['gradients'] / 7
  assert found[3]['parameters'] < found[2]['parameters'] / 7
  assert found[0]['parameters'] == found[2]['parameters']
  assert found[0]['optimizer'] == pytest.approx(2 * found[0]['parameters'], abs=64)  # two moments and counters
  assert len({held['activations'] for held in found.values()}) == 1


def test_accumulation_shrinks_activations_and_recomputation_costs_time():
  where = topology.parse('h200:1')
  problem = setup.Problem.of(config_of())
  of = lambda **changes: estimate(problem, config_of(**changes), where, traced(problem, where))
  one, four = of(), of(**{'optimizer.accumulation_steps': 4})
  assert four.bytes['activations'] == pytest.approx(one.bytes['activations'] / 4, abs=2)
  full = of(**{'model.remat': 'full'})
  assert full.bytes['activations'] < one.bytes['activations'] and full.flops > one.flops
  assert full.model_flops == one.model_flops == four.model_flops


def test_microbatches_leave_whole_rows():
  assert _halvings(8) == [1, 2, 4, 8]
  assert _halvings(12) == [1, 2, 4, 12]
  assert _halvings(0.5) == [] and _halvings(1) == [1]


class TestEntryPoint:
  def run(self, *arguments):
    return subprocess.run([sys.executable, 'plan.py', *arguments], capture_output=True, text=True)

  @pytest.mark.parametrize(
    'arguments, words',
    [
      ([], 'the following arguments are required: --config'),
      (['--config=configs/gpt2.py'], 'nothing to do; give --layout, or --topology=v5e:16x16'),
      (['--config=configs/gpt2.py', '--layout', '--suggest'], '--suggest needs the devices'),
      (['--config=configs/gpt2.py', '--layout', '--mesh=8'], 'a config key is set by --config.GROUP.KEY=VALUE'),
    ],
  )
  def test_bad_usage_ends_with_status_2(self, arguments, words, capsys):
    with pytest.raises(SystemExit) as ended:
      entry_point.parse(arguments)
    assert ended.value.code == 2 and words in capsys.readouterr().err

  def test_the_layout_needs_no_devices(self, tmp_path):
    out = tmp_path / 'layout.json'
    done = self.run('--config=configs/llama.py:8b', '--layout', f'--json={out}')
    assert done.returncode == 0, done.stderr
    assert re.search(r'layers/mlp/up/kernel +parameters +\(32, 4096, 14336\) +float32 +-, fsdp, -', done.stdout)
    assert 'fsdp 64; a device holds: parameters' in done.stdout
    written = json.loads(out.read_text())
    total = sum(leaf['bytes'] for leaf in written['layout'] if leaf['of'] == 'parameters')
    assert total == pytest.approx(4 * 8.03e9 / 64, rel=1e-3)

  @pytest.mark.parametrize(
    'arguments, words',
    [
      (['--config=configs/gpt2.py', '--layout'], 'error: --layout of a mesh with -1 needs the number of devices'),
      (['--config=configs/gpt2.py', '--topology=h200:12'], 'error: the topology .* does not fill its hosts'),
      (['--config=configs/nosuch.py', '--layout'], 'error: no config file'),
    ],
  )
  def test_what_cannot_be_planned_is_said_in_words(self, arguments, words, capsys, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['plan.py', *arguments])
    assert entry_point.main() == 1
    assert re.search(words, capsys.readouterr().err)


class TestSearch:
  """With compilation played, which takes minutes."""

  @pytest.fixture
  def compiled(self, monkeypatch):
    seen = []

    def step(problem, config, where, target_config):
      seen.append(planning.words(config))
      held = estimate(problem, config, where, traced(problem, where))
      layout = parallel.Layout(parallel.check_mesh(config.mesh, where.num_devices), config.zero_stage)
      built = dataclasses.replace(program.build(config_of(), epoch_steps=1.0, devices=jax.devices()[:1]), layout=layout)
      if len(seen) == 1:
        raise compiling.DoesNotFit('too large', where.device.memory_bytes + 2**30, where.device.memory_bytes)
      return compiling.Compiled(built, 1.0, 2.0, held.total_bytes, 0, held.total_bytes, (), {}, ('hopper',))

    monkeypatch.setattr(compiling, 'step', step)
    return seen

  def test_the_fastest_that_fit_are_compiled_and_ranked(self, compiled):
    plans, tried = planning.suggest(config_of(), topology.parse('h200:4'), say=lambda text: None)
    assert len(plans) == 3 and len(compiled) == 4 and tried > 50
    assert [plan.seconds for plan in plans] == sorted(plan.seconds for plan in plans)
    assert len(set(compiled)) == 4 and all('--config.zero_stage=' in words for words in compiled)
    assert planning.text(plans[0]) and json.dumps(planning.to_json(plans[0]))

  def test_what_does_not_fit_is_named(self, compiled):
    plan = planning.make_plan(config_of(), topology.parse('h200:4'))
    assert not plan.fits
    words = planning.misfit_words(plan)
    assert 'h200:4: a step needs 142.00 GiB of each device, of which 141.00 GiB can be used: 1.00 GiB too much' in words
    assert 'the largest parts are' in words

  def test_a_model_that_fits_nowhere_is_said_so(self):
    config = config_of(**{'model.num_layers': 2, 'model.embed_dim': 65536, 'model.mlp_dim': 2**20})
    with pytest.raises(ValueError, match='nothing fits h200:1, .* the smallest of [0-9]+ layouts needs'):
      planning.suggest(config, topology.parse('h200:1'))
