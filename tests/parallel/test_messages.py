"""What a layout says, by arithmetic: each count of bytes by hand."""

import dataclasses

import pytest
from jax.sharding import AbstractMesh

import parallel
from parallel import messages

STEP = messages.Step(
  parameters={(False, True): 800, (False, False): 200},
  tokens=64,
  layers=4,
  sublayers=8,
  embed_dim=16,
  kv_dim=8,
  expert_layers=0,
  experts_per_token=2,
  microbatches=2,
  itemsize=2,
  recomputed=0,
)


def said(zero_stage=0, sequence_parallel=False, step=STEP, **sizes):
  mesh = AbstractMesh(tuple(sizes.get(axis, 1) for axis in parallel.AXES), parallel.AXES)
  totals = {}
  for kind, axes, moved in messages.messages(parallel.Layout(mesh, zero_stage, sequence_parallel), step):
    large = tuple(axis for axis in axes if mesh.shape[axis] > 1)
    if large and moved:
      totals[kind, large] = totals.get((kind, large), 0) + moved
  return totals


def test_data_parallelism_reduces_the_gradients_once_a_step():
  assert said(data=4) == {('all-reduce', ('data',)): 4 * 1000}
  assert said(data=2, fsdp=2) == {('all-reduce', ('data', 'fsdp')): 4 * 1000}


def test_zero_1_gathers_what_was_updated():
  assert said(1, fsdp=4) == {('all-reduce', ('fsdp',)): 4000, ('all-gather', ('fsdp',)): 4000}


def test_zero_2_scatters_every_microbatch():
  assert said(2, fsdp=4) == {('reduce-scatter', ('fsdp',)): 2 * 4000, ('all-gather', ('fsdp',)): 4000}


def test_zero_3_gathers_layers_twice_and_the_vocabulary_once_a_microbatch():
  assert said(3, fsdp=4, data=2) == {
    ('all-gather', ('fsdp',)): 2 * 2 * (2 * 800 + 200),
    ('reduce-scatter', ('fsdp',)): 2 * 4000,
    ('all-reduce', ('data',)): 4000 / 4,
  }


def test_tensor_parallelism_reduces_the_stream_behind_each_branch():
  stream = 64 * 16 * 2
  assert said(tensor=2) == {('all-reduce', ('tensor',)): (8 + 1) * 2 * stream}
  assert said(tensor=2, sequence_parallel=True) == {
    ('all-gather', ('tensor',)): (8 + 1) * 2 * stream,
    ('reduce-scatter', ('tensor',)): (8 + 1) * 2 * stream,
  }
  recomputed = dataclasses.replace(STEP, recomputed=1)
  assert said(tensor=2, step=recomputed) == {('all-reduce', ('tensor',)): (8 + 1) * 3 * stream}


def test_experts_exchange_tokens_both_ways():
  step = dataclasses.replace(STEP, parameters={(True, True): 800}, expert_layers=4)
  assert said(expert=2, step=step) == {('all-to-all', ('expert',)): 4 * 2 * 2 * (32 * 16 * 2) * 2}


def test_a_pipeline_waits_for_its_first_and_last_microbatch():
  layout = lambda stages: parallel.Layout(AbstractMesh((stages, 1, 1, 1, 1, 1), parallel.AXES))
  assert messages.bubble(layout(1), 8) == 0
  assert messages.bubble(layout(4), 8) == pytest.approx(3 / 11)


def test_meshes_use_every_device_and_divide_the_heads():
  found = list(messages.meshes(16, num_experts=4, heads=12))
  assert all(sizes['data'] * sizes['fsdp'] * sizes['expert'] * sizes['tensor'] == 16 for sizes in found)
  assert {sizes['tensor'] for sizes in found} == {1, 2, 4} and {sizes['expert'] for sizes in found} == {1, 2, 4}
  assert len(found) == len({tuple(sizes.values()) for sizes in found})
