"""Sharding rules: every leaf by an explicit rule, mistakes with the leaf's path and sizes."""

import jax
import numpy as np
import pytest
from harness.layouts import make_layout
from jax.sharding import PartitionSpec

import parallel
from parallel import axes


@pytest.fixture(scope='module')
def layout():
  return make_layout(3, data=2, fsdp=4)


def leaf(*shape):
  return jax.ShapeDtypeStruct(shape, np.float32)


@pytest.mark.parametrize(
  'stage, split', [(0, ''), (1, 'state'), (2, 'state gradient'), (3, 'state gradient parameter')]
)
def test_each_stage_splits_more(stage, split):
  layout = make_layout(stage, data=2, fsdp=2, tensor=2)
  for kind in ('state', 'gradient', 'parameter'):
    found = getattr(layout, f'{kind}_spec')(('layers', 'embed', 'mlp'), (3, 8, 32))
    assert found == PartitionSpec('pipeline', 'fsdp' if kind in split else None, 'tensor'), kind
  assert layout.used_spec(('embed', 'mlp'), (8, 32)) == PartitionSpec(None, 'tensor')


@pytest.mark.parametrize(
  'logical, shape, spec',
  [
    (('mlp',), (32,), (('tensor', 'fsdp'),)),  # a bias: there is no embed
    (('kv_heads', 'head_dim'), (3, 8), (None, 'fsdp')),  # key heads that tensor does not divide
    (('vocab', 'embed'), (33, 8), (None, 'fsdp')),  # and such a vocabulary
    (('length', 'heads'), (6, 2), ('fsdp', 'tensor')),
    (('length', 'head_dim'), (5, 3), (None, None)),  # nothing divides
  ],
)
def test_what_has_no_embed_or_does_not_divide_is_split_as_the_rules_say(logical, shape, spec):
  assert make_layout(3, fsdp=2, tensor=2).parameter_spec(logical, shape) == PartitionSpec(*spec)


def test_activations():
  names = ('batch', 'residual_length', 'embed')
  batch = ('data', 'fsdp', 'expert', 'pipeline')
  layouts = [make_layout(tensor=2, sequence=2, sequence_parallel=choice) for choice in (False, True)]
  specs = [layout.activation_spec(names, (4, 8, 16)) for layout in layouts]
  assert specs == [PartitionSpec(batch, 'sequence', None), PartitionSpec(batch, ('sequence', 'tensor'), None)]
  assert [layout.length_shards for layout in layouts] == [2, 4]


@pytest.mark.parametrize(
  'shape, logical, words',
  [
    ((6, 5), ('embed', 'mlp'), r"layer/up.*'embed' of size 6 does not divide.*4 devices"),
    ((8, 8), ('embed', 'embed'), 'layer/up.*would split two dimensions'),
    ((8,), ('wings',), "layer/up.*no sharding rule.*'wings'"),
    ((8, 8), ('embed',), 'layer/up.*2 dimensions.*1 logical'),
  ],
)
def test_mistakes_name_the_leaf(layout, shape, logical, words):
  with pytest.raises(ValueError, match=words):
    parallel.parameter_shardings({'layer': {'up': leaf(*shape)}}, {'layer': {'up': logical}}, layout)


def test_unknown_stage_is_refused():
  with pytest.raises(ValueError, match='zero_stage=4 does not exist'):
    make_layout(4)


@pytest.mark.parametrize('stage', [0, 1, 3])
def test_what_belongs_to_a_parameter_is_sharded_like_it(stage):
  layout, params, logical = make_layout(stage, fsdp=4), {'up': leaf(8, 32)}, {'up': ('embed', 'mlp')}
  state = {'params': params, 'opt': ({'mu': params, 'row': {'up': leaf(8)}}, leaf()), 'ema': params}
  found = parallel.state_shardings(state, params, logical, layout)
  assert found['params']['up'].spec == layout.parameter_spec(logical['up'], (8, 32))
  assert found['opt'][0]['mu']['up'].spec == found['ema']['up'].spec == layout.state_spec(logical['up'], (8, 32))
  assert found['opt'][0]['row']['up'].spec == found['opt'][1].spec == PartitionSpec()


def test_constrain_is_the_identity_without_a_mesh_and_pins_within(layout):
  x = np.ones((8, 4, 2), np.float32)
  assert axes.constrain(x, ('batch', 'length', 'embed')) is x
  with axes.activation_sharding(layout):
    pinned = jax.jit(lambda x: axes.constrain(x, ('batch', 'length', 'embed')))(x)
  assert pinned.sharding.spec == PartitionSpec(('data', 'fsdp'))


def test_description_lists_every_parameter_and_what_its_rules_could_not_do():
  layout = make_layout(3, fsdp=4, tensor=2)
  params = {'a': {'b': leaf(8, 32), 'c': leaf(32)}, 'k': leaf(8, 3, 2), 'r': leaf(5, 3)}
  logical = {
    'a': {'b': ('embed', 'mlp'), 'c': ('mlp',)},
    'k': ('embed', 'kv_heads', 'head_dim'),
    'r': ('length', 'rank'),
  }
  assert parallel.describe(params, logical, layout).splitlines() == [
    'a/b  (8, 32)    fsdp, tensor  128 B',
    'a/c  (32,)      tensor fsdp   16 B',
    'k    (8, 3, 2)  fsdp, -, -    48 B   kv_heads 3 does not divide over 2: whole',
    'r    (5, 3)     -, -          60 B   no dimension divides over 4: ZeRO does not split it',
    'parameters on each device: 252 B',
  ]
