"""Every matmul of the loss carries its module path, since precision rules and adapters select by it."""

import re

import jax
import jax.numpy as jnp
import pytest
from jax.extend import core

import model as model_lib
import objectives
from configs import base


def matmul_scopes(jaxpr, outer=''):
  """(scope, equation) of every dot_general, sub-jaxprs included."""
  for eqn in jaxpr.eqns:
    scope = '/'.join(filter(None, [outer, str(eqn.source_info.name_stack)]))
    if eqn.primitive.name == 'dot_general':
      yield scope
    for value in jax.tree.leaves(eqn.params, is_leaf=lambda v: isinstance(v, (core.Jaxpr, core.ClosedJaxpr))):
      if isinstance(value, core.ClosedJaxpr):
        value = value.jaxpr
      if isinstance(value, core.Jaxpr):
        yield from matmul_scopes(value, scope)


@pytest.mark.parametrize('layer_loop', ['scan', 'unroll'])
@pytest.mark.parametrize('gradient', [False, True])
def test_every_matmul_names_its_module(layer_loop, gradient):
  config = base.get_config()
  config.model.update({'vocab_size': 64, 'num_layers': 2, 'embed_dim': 32, 'layer_loop': layer_loop})
  model, params = model_lib.build(config.model)
  loss = objectives.loss(config.objective, model)
  function = jax.grad(loss, has_aux=True) if gradient else loss
  batch = dict.fromkeys(('tokens', 'segment_ids', 'positions'), jnp.ones((2, 9), jnp.int32))
  scopes = list(matmul_scopes(jax.make_jaxpr(function)(params, batch, jax.random.key(0)).jaxpr))
  modules = {re.sub(r'\w+\((.*?)\)', r'\1', scope).replace('(', '').replace(')', '') for scope in scopes}
  expected = {f'decoder/block/attention/{name}' for name in ('query', 'key', 'value', 'out')}
  expected |= {f'decoder/block/mlp/{name}' for name in ('up', 'gate', 'down')} | {'decoder/head'}
  for path in expected:
    assert any(path in scope for scope in modules), (path, sorted(modules))
  core_paths = (*expected, 'decoder/block/attention')
  assert all(any(path in scope for path in core_paths) for scope in modules), sorted(modules)
