"""Sharding rules: every leaf by an explicit rule, mistakes with the leaf's path and sizes."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

import parallel
from parallel import axes, rules


@pytest.fixture
def mesh():
  return jax.make_mesh((2, 4), ('data', 'fsdp'), axis_types=(jax.sharding.AxisType.Auto,) * 2)


def leaf(*shape):
  return jax.ShapeDtypeStruct(shape, np.float32)


def test_stage_0_replicates_and_stage_3_splits_embed(mesh):
  params, logical = {'up': leaf(3, 8, 32)}, {'up': ('layers', 'embed', 'mlp')}
  specs = [parallel.parameter_shardings(params, logical, mesh, stage)['up'].spec for stage in (0, 3)]
  assert specs == [PartitionSpec(None, None, None), PartitionSpec(None, 'fsdp', None)]


@pytest.mark.parametrize(
  'shape, logical, words',
  [
    ((6, 5), ('embed', 'mlp'), r"layer/up.*'embed' of size 6 does not divide.*4 devices"),
    ((8, 8), ('embed', 'embed'), 'layer/up.*would split two dimensions'),
    ((8,), ('wings',), "layer/up.*no sharding rule.*'wings'"),
    ((8, 8), ('embed',), 'layer/up.*2 dimensions.*1 logical'),
  ],
)
def test_mistakes_name_the_leaf(mesh, shape, logical, words):
  with pytest.raises(ValueError, match=words):
    parallel.parameter_shardings({'layer': {'up': leaf(*shape)}}, {'layer': {'up': logical}}, mesh, 3)


def test_unknown_stage_is_refused():
  with pytest.raises(ValueError, match='zero_stage=2 does not exist'):
    parallel.parameter_rules(2)


def test_what_belongs_to_a_parameter_is_sharded_like_it(mesh):
  params = {'up': leaf(8, 32)}
  shardings = parallel.parameter_shardings(params, {'up': ('embed', 'mlp')}, mesh, 3)
  state = {'params': params, 'opt': ({'mu': params, 'row': {'up': leaf(8)}}, leaf())}
  found = parallel.state_shardings(state, params, shardings, mesh)
  assert found['params']['up'] == found['opt'][0]['mu']['up'] == shardings['up']
  assert found['opt'][0]['row']['up'].spec == found['opt'][1].spec == PartitionSpec()


def test_constrain_is_the_identity_without_a_mesh_and_pins_within(mesh):
  x = np.ones((8, 4, 2), np.float32)
  assert axes.constrain(x, ('batch', 'length', 'embed')) is x
  with axes.activation_sharding(mesh, rules.activation_spec):
    pinned = jax.jit(lambda x: axes.constrain(x, ('batch', 'length', 'embed')))(x)
  assert pinned.sharding.spec == PartitionSpec(('data', 'fsdp'))


def test_description_lists_every_parameter(mesh):
  params, logical = {'a': {'b': leaf(8, 32), 'c': leaf(32)}}, {'a': {'b': ('embed', 'mlp'), 'c': ('mlp',)}}
  shardings = parallel.parameter_shardings(params, logical, mesh, 3)
  assert parallel.describe(params, shardings).splitlines() == ['a/b  (8, 32)  fsdp, None', 'a/c  (32,)    None']
