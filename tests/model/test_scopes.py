"""Scope paths are parameter paths: precision rules, adapters and freezing select a module by one pattern."""

import re

import jax
import jax.numpy as jnp
import pytest
from jax.extend import core

import model as model_lib
import objectives
from configs import base


def equations(jaxpr, outer=''):
  """(path, equation) of every equation, sub-jaxprs included."""
  for eqn in jaxpr.eqns:
    path = '/'.join(filter(None, [outer, str(eqn.source_info.name_stack)]))
    yield path, eqn
    for value in jax.tree.leaves(eqn.params, is_leaf=lambda v: isinstance(v, (core.Jaxpr, core.ClosedJaxpr))):
      if isinstance(value, core.ClosedJaxpr):
        value = value.jaxpr
      if isinstance(value, core.Jaxpr):
        yield from equations(value, path)


def traced(gradient=False, **changes):
  """Parameters and the equations of the loss of a small model."""
  config = base.get_config()
  config.model.update({'vocab_size': 64, 'num_layers': 3, 'embed_dim': 32, 'dropout_rate': 0.1, **changes})
  model = model_lib.create(config.model)
  params = jax.eval_shape(model.init, jax.random.key(0))
  objective = objectives.create(config.objective)
  loss = objective.loss(model)
  function = jax.grad(loss, has_aux=True) if gradient else loss
  batch = dict.fromkeys(objective.batch_axes, jnp.ones((2, 8), jnp.int32))
  return params, list(equations(jax.make_jaxpr(function)(params, batch, jax.random.key(0)).jaxpr))


def modules(params) -> set[str]:
  return {
    jax.tree_util.keystr(path[:-1], simple=True, separator='/')
    for path, _ in jax.tree_util.tree_leaves_with_path(params)
  }


@pytest.mark.parametrize(
  'changes',
  [
    {'layer_loop': 'scan'},
    {'layer_loop': 'unroll'},
    {'layer_loop': 'scan', 'remat': 'full'},
    {
      'positions': 'learned',
      'max_length': 8,
      'norm': 'layernorm',
      'use_bias': True,
      'gated_mlp': False,
      'tie_embeddings': False,
    },
    {'attention': {'window': 4, 'pattern': ('local', 'global'), 'qk_norm': True}, 'layer_loop': 'unroll'},
    {'attention': {'window': 4, 'pattern': ('local', 'global')}, 'layer_loop': 'scan'},
    {
      'moe': {'num_experts': 4, 'every': 2, 'shared_mlp_dim': 8, 'router_bias': True, 'selection_bias': True},
      'use_bias': True,
      'layer_loop': 'unroll',
    },
  ],
  ids=str,
)
def test_every_parameter_is_used_in_the_scope_of_its_path(changes):
  params, found = traced(**changes)
  paths = {path for path, _ in found}
  expected = modules(params) - {'head'}
  assert expected <= paths, (sorted(expected - paths), sorted(paths))
  assert any(path.split('/')[0] == 'head' for path in paths), sorted(paths)
  attention = {name.rsplit('/', 1)[0] for name in expected if name.endswith('/query')}
  for path, eqn in found:
    if eqn.primitive.name == 'dot_general':
      assert path in expected or path.startswith(('head', *attention)), path


@pytest.mark.parametrize('layer_loop', ['scan', 'unroll'])
def test_gradients_of_matmuls_name_their_module_too(layer_loop):
  params, found = traced(gradient=True, layer_loop=layer_loop)
  plain = {
    re.sub(r'\w+\((.*?)\)', r'\1', path).replace('(', '').replace(')', '').replace('//', '/')
    for path, eqn in found
    if eqn.primitive.name == 'dot_general'
  }
  kernels = {
    jax.tree_util.keystr(path[:-1], simple=True, separator='/')
    for path, _ in jax.tree_util.tree_leaves_with_path(params)
    if path[-1].key == 'kernel'
  }
  for name in kernels | {'head'}:
    assert any(name in path for path in plain), (name, sorted(plain))
  assert all(any(name in path for name in (*kernels, 'head', 'layers/attention')) for path in plain), sorted(plain)


def test_outputs_residuals_and_dropout_masks_are_named():
  params, found = traced(layer_loop='unroll')
  named = {(path, eqn.params['name']) for path, eqn in found if eqn.primitive.name == 'name'}
  assert {(name, 'output') for name in modules(params)} <= named
  assert ('layers', 'output') in named and ('layers', 'residual') in named and ('layers', 'dropout_mask') in named


def test_an_unrolled_layer_is_traced_once_and_called_by_every_repeat():
  _, found = traced(layer_loop='unroll', attention={'window': 4, 'pattern': ('local', 'global')}, num_layers=6)
  calls = [eqn.params['jaxpr'] for _, eqn in found if eqn.params.get('name') == 'layer']
  assert len(calls) == 6 and len({id(jaxpr) for jaxpr in calls}) == 2
  assert all(calls[i] is calls[i % 2] for i in range(6))
