"""Collectives of a compiled program: which, how large, in which loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from parallel.collectives import Collective, collectives


@pytest.mark.optimised
def test_kinds_sizes_and_loops_of_a_compiled_program():
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:8]), ('devices',))

  def run(x):
    def inner(total, _):
      return jnp.sin(jax.lax.psum(total, 'devices')), None

    def outer(total, _):
      total = jax.lax.scan(inner, total, None, length=5)[0]
      return jax.lax.ppermute(total, 'devices', [(n, (n + 1) % 8) for n in range(8)]), None

    with jax.named_scope('loops'):
      x = jax.lax.scan(outer, x, None, length=3)[0]
    with jax.named_scope('after'):
      return jax.lax.psum_scatter(jax.lax.all_gather(x, 'devices'), 'devices')

  split = jax.shard_map(
    run, mesh=mesh, in_specs=PartitionSpec('devices'), out_specs=PartitionSpec('devices'), check_vma=False
  )
  found = collectives(jax.jit(split).lower(jnp.zeros((8, 6))).compile().as_text())
  part = 6 * 4
  assert sorted((x.kind, x.bytes, x.loops) for x in found) == [
    ('all-gather', 8 * part, ()),
    ('all-reduce', part, (3, 5)),
    ('collective-permute', part, (3,)),
    ('reduce-scatter', 8 * part, ()),
  ]
  assert all(('loops' in x.scope) == bool(x.loops) and ('after' in x.scope) != bool(x.loops) for x in found)


_ASYNCHRONOUS = """
HloModule jit_step, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  ROOT %y = f32[] parameter(1)
}

%scatter (p: f32[64,4]) -> f32[8,4] {
  %p = f32[64,4]{1,0} parameter(0)
  ROOT %rs = f32[8,4]{1,0} reduce-scatter(%p), dimensions={0}, to_apply=%add, metadata={op_name="jit(f)/head/psum"}
}

%body (carry: (s32[], bf16[8,2])) -> (s32[], bf16[8,2]) {
  %carry = (s32[], bf16[8,2]{1,0}) parameter(0)
  %kept = bf16[8,2]{1,0} get-tuple-element(%carry), index=1
  %ag = (bf16[8,2]{1,0}, bf16[64,2]{1,0}) all-gather-start(%kept), dimensions={0}
  %agd = bf16[64,2]{1,0} all-gather-done(%ag)
  ROOT %all = (s32[], bf16[8,2]{1,0}) tuple(%n, %kept)
}

%condition (carry.1: (s32[], bf16[8,2])) -> pred[] {
  ROOT %carry.1 = (s32[], bf16[8,2]{1,0}) parameter(0)
}

ENTRY %main (a: f32[64,4], b: (s32[], bf16[8,2])) -> f32[8,4] {
  %a = f32[64,4]{1,0} parameter(0)
  %b = (s32[], bf16[8,2]{1,0}) parameter(1)
  %loop = (s32[], bf16[8,2]{1,0}) while(%b), condition=%condition, body=%body
  %ar = (f32[64,4]{1,0}, s8[16]{0}) all-reduce-start(%a, %c), to_apply=%add
  %paired = ((f32[64,4]{1,0}), f32[64,4]{1,0}) all-reduce-start(%a), to_apply=%add
  %started = ((f32[64,4]{1,0}), f32[8,4]{1,0}, u32[]) async-start(%a), calls=%scatter
  ROOT %done = f32[8,4]{1,0} async-done(%started), calls=%scatter
}
"""


def test_collectives_that_start_and_end_count_once_and_a_loop_may_run_an_unknown_number_of_times():
  whole = 64 * 4 * 4
  assert sorted(collectives(_ASYNCHRONOUS), key=lambda x: (x.kind, x.bytes)) == [
    Collective('all-gather', 64 * 2 * 2, (None,), ''),
    Collective('all-reduce', whole, (), ''),
    Collective('all-reduce', whole + 16, (), ''),
    Collective('reduce-scatter', whole, (), 'jit(f)/head/psum'),
  ]


def test_a_loop_runs_up_to_the_constant_that_its_counter_is_compared_with():
  text = _ASYNCHRONOUS.replace(
    '  ROOT %carry.1 = (s32[], bf16[8,2]{1,0}) parameter(0)\n',
    """  %carry.1 = (s32[], bf16[8,2]{1,0}) parameter(0)
  %bound = s32[]{:T(128)} constant(24)
  %counter = s32[]{:T(128)} get-tuple-element(%carry.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%counter, %bound), direction=LT
""",
  )
  assert text != _ASYNCHRONOUS
  (gather,) = [x for x in collectives(text) if x.kind == 'all-gather']
  assert (gather.loops, gather.times) == ((24,), 24)


class TestMeshAxes:
  """2 x 2 x 2 devices; number 5 stands at (1, 0, 1)."""

  shape = {'data': 2, 'fsdp': 2, 'tensor': 2}

  def axes(self, line):
    text = (
      f'ENTRY %main (a: f32[8]) -> f32[8] {{\n  %a = f32[8]{{0}} parameter(0)\n  ROOT %r = f32[8]{{0}} {line}\n}}\n'
    )
    (found,) = collectives(text)
    return found.mesh_axes(self.shape)

  def test_listed_groups(self):
    assert self.axes('all-reduce(%a), replica_groups={{0,1},{2,3},{4,5},{6,7}}') == ('tensor',)
    assert self.axes('all-reduce(%a), replica_groups={{0,4},{1,5},{2,6},{3,7}}') == ('data',)
    assert self.axes('all-reduce(%a), replica_groups={{0,2,4,6},{1,3,5,7}}') == ('data', 'fsdp')

  def test_groups_that_are_counted_out(self):
    assert self.axes('all-reduce(%a), replica_groups=[4,2]<=[8]') == ('tensor',)
    assert self.axes('all-reduce(%a), replica_groups=[4,2]<=[2,2,2]T(0,2,1)') == ('fsdp',)
    assert self.axes('all-reduce(%a), replica_groups=[2,4]<=[4,2]T(1,0)') == ('data', 'fsdp')

  def test_axes_of_a_mesh(self):
    mesh = "replica_groups=mesh['a'=2,'b'=2,'c'=2]"
    assert self.axes(f"all-reduce(%a), {mesh} {{'b'}}") == ('fsdp',)
    assert self.axes(f"all-reduce(%a), {mesh} {{'a','c'}}") == ('data', 'tensor')
    parts = "replica_groups=mesh['all'=8]"
    assert self.axes(f"all-reduce(%a), {parts} {{'all':(1)2}}") == ('data',)
    assert self.axes(f"all-reduce(%a), {parts} {{'all':(2)2}}") == ('fsdp',)

  def test_pairs(self):
    line = 'collective-permute(%a), source_target_pairs={{0,2},{2,0},{4,6},{6,4},{1,1}}'
    assert self.axes(line) == ('fsdp',)

  def test_without_groups_all_devices_take_part(self):
    assert self.axes('all-reduce(%a), replica_groups={}') == ('data', 'fsdp', 'tensor')

  def test_an_unknown_form_is_refused(self):
    with pytest.raises(ValueError, match='unknown form: replica_groups=@groups'):
      self.axes('all-reduce(%a), replica_groups=@groups')


@pytest.mark.optimised
def test_a_compiled_program_names_its_axes():
  mesh = jax.make_mesh((2, 4), ('data', 'tensor'), axis_types=(jax.sharding.AxisType.Auto,) * 2)

  def run(x):
    x = jax.lax.psum(x, 'data')
    x = jax.lax.ppermute(x, 'tensor', [(n, (n + 1) % 4) for n in range(4)])
    return jax.lax.all_gather(jnp.sin(x), ('data', 'tensor'))

  split = jax.shard_map(
    run, mesh=mesh, in_specs=PartitionSpec(('data', 'tensor')), out_specs=PartitionSpec(), check_vma=False
  )
  found = collectives(jax.jit(split).lower(jnp.zeros((8, 6))).compile().as_text())
  assert {x.kind: x.mesh_axes(mesh.shape) for x in found} == {
    'all-reduce': ('data',),
    'collective-permute': ('tensor',),
    'all-gather': ('data', 'tensor'),
  }


_OF_A_TPU = """
HloModule jit_step, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  ROOT %y = f32[] parameter(1)
}

%all-reduce-scatter.1 (input: f32[8,64]) -> f32[8,16] {
  %input = f32[8,64]{1,0} parameter(0)
  %all-reduce.1 = f32[8,64]{1,0} all-reduce(%input), channel_id=4, to_apply=%add
  ROOT %slice = f32[8,16]{1,0} dynamic-slice(%all-reduce.1, %zero, %place), dynamic_slice_sizes={8,16}
}

%start (p: f32[8,16]) -> f32[8,64] {
  %p = f32[8,16]{1,0} parameter(0)
  ROOT %ag.1 = f32[8,64]{1,0} all-gather(%p), channel_id=7, attributes={chain_id="0"}, metadata={op_name="f/up"}
}

%end (q: f32[8,16]) -> f32[8,64] {
  %q = f32[8,16]{1,0} parameter(0)
  ROOT %ag.2 = f32[8,64]{1,0} all-gather(%q), channel_id=7, attributes={chain_id="0"}, metadata={op_name="f/up"}
}

ENTRY %main (a: f32[8,64], b: f32[8,16]) -> f32[8,64] {
  %a = f32[8,64]{1,0} parameter(0)
  %b = f32[8,16]{1,0} parameter(1)
  %fusion.1 = f32[8,16]{1,0} fusion(%a), kind=kCustom, calls=%all-reduce-scatter.1, metadata={op_name="f/down"}
  %fusion.2 = f32[8,64]{1,0} fusion(%b), kind=kCustom, calls=%start
  ROOT %fusion.3 = f32[8,64]{1,0} fusion(%fusion.1), kind=kCustom, calls=%end
}
"""


def test_fusions_of_a_tpu_are_the_collectives_that_they_stand_for():
  whole = 8 * 64 * 4
  assert sorted(collectives(_OF_A_TPU), key=lambda x: x.kind) == [
    Collective('all-gather', whole, (), 'f/up'),
    Collective('reduce-scatter', whole, (), 'f/down'),
  ]
