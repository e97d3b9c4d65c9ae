import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import base
from training import optimizers

GOLDEN = np.load(pathlib.Path(__file__).resolve().parents[1] / 'golden' / 'optimizers.npz')
AXES = {
  'embedding': {'table': ('vocab', 'embed')},
  'position': {'table': ('length', 'embed')},
  'final_norm': {'scale': ('embed',)},
  'layers': {
    'query': {'kernel': ('layers', 'embed', 'heads', 'head_dim'), 'bias': ('layers', 'heads', 'head_dim')},
    'out': {'kernel': ('layers', 'heads', 'head_dim', 'embed'), 'bias': ('layers', 'embed')},
    'up': {'kernel': ('layers', 'embed', 'mlp'), 'bias': ('layers', 'mlp')},
    'down': {'kernel': ('layers', 'mlp', 'embed')},
    'norm': {'scale': ('layers', 'embed')},
  },
}
SIZES = {'vocab': 160, 'length': 16, 'embed': 128, 'heads': 2, 'head_dim': 64, 'mlp': 256, 'layers': 3}
WIDTHS = {'query': (128, 128), 'out': (128, 128), 'up': (128, 256), 'down': (256, 128)}


def tree(seed, scale=1.0):
  generator = np.random.default_rng(seed)
  return jax.tree.map(
    lambda axes: jnp.asarray(scale * generator.normal(size=[SIZES[a] for a in axes]), jnp.float32),
    AXES,
    is_leaf=lambda node: isinstance(node, tuple),
  )


def optimizer(name, axes=AXES, run_steps=100, **keys):
  config = base.get_config()
  config.optimizer.update(name=name, schedule='constant', **keys)
  return optimizers.build(config.optimizer, axes, run_steps=run_steps, warmup_steps=0, decay_steps=1)[0]


def updated(transformation, params, gradients):
  """The parameters after an update by each of `gradients`."""

  @jax.jit
  def step(params, state, gradient):
    updates, state = transformation.update(gradient, state, params, grad_norm=optax.tree.norm(gradient))
    return optax.apply_updates(params, updates), state

  state = transformation.init(params)
  for gradient in gradients:
    params, state = step(params, state, gradient)
  return params


@pytest.mark.parametrize('name', ['adamw', 'adam', 'sgd', 'rmsprop'])
def test_pytorch_makes_the_same_updates(name):
  axes = {'kernel': ('layers', 'embed', 'heads', 'head_dim'), 'scale': ('layers', 'embed')}
  decay = 0.1 if name == 'adamw' else 0.0
  transformation = optimizer(
    name,
    axes,
    learning_rate=3e-2,
    beta1=0.8,
    beta2=0.95,
    epsilon=1e-6,
    momentum=0.7,
    clip_norm=10.0,
    weight_decay=decay,
  )
  gradients = [{leaf: GOLDEN[f'gradients/{leaf}'][update] for leaf in axes} for update in range(5)]
  params = updated(transformation, {leaf: jnp.asarray(GOLDEN[f'initial/{leaf}']) for leaf in axes}, gradients)
  for leaf in axes:
    np.testing.assert_allclose(params[leaf], GOLDEN[f'{name}/{leaf}'], rtol=2e-5, atol=2e-6)


def test_lion_follows_the_sign_of_its_interpolation():
  gradients = [tree(seed) for seed in (1, 2)]
  params = tree(0)
  moved = updated(optimizer('lion', learning_rate=0.01, weight_decay=0.0, clip_norm=0.0), params, gradients)
  first, second = [g['layers']['up']['kernel'] for g in gradients]
  expected = params['layers']['up']['kernel'] - 0.01 * (np.sign(first) + np.sign(0.9 * 0.05 * first + 0.1 * second))
  np.testing.assert_allclose(moved['layers']['up']['kernel'], expected, atol=1e-6)


def test_adafactor_divides_by_row_and_column_statistics_of_each_layer():
  """Shazeer and Stern 2018, algorithm 4, whose first update is made of the first gradient alone."""
  params, gradient = tree(0), jax.tree.map(lambda g: g**5, tree(1))
  moved = updated(optimizer('adafactor', learning_rate=0.01, weight_decay=0.0, clip_norm=0.0), params, [gradient])
  for name, (inputs, outputs) in WIDTHS.items():
    g = np.asarray(gradient['layers'][name]['kernel'], np.float64).reshape(3, inputs, outputs)
    rows, columns = (g**2).mean(2, keepdims=True), (g**2).mean(1, keepdims=True)
    direction = g / np.sqrt(rows * columns / rows.mean(1, keepdims=True))
    direction /= np.maximum(1, np.sqrt((direction**2).mean((1, 2), keepdims=True)))
    change = (moved['layers'][name]['kernel'] - params['layers'][name]['kernel']).reshape(g.shape)
    np.testing.assert_allclose(change, -0.01 * direction, rtol=1e-3, atol=2e-6)


def newton_schulz(matrix):
  """Five quintic iterations (Jordan 2024), by the polynomial acting on singular values in float64."""
  u, s, vt = np.linalg.svd(np.asarray(matrix, np.float64), full_matrices=False)
  s = s / np.linalg.norm(s)
  for _ in range(5):
    s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
  return (u * s) @ vt, s


def test_muon_orthogonalises_every_layers_matrix():
  params, gradient = tree(0), tree(1)
  moved = updated(optimizer('muon', learning_rate=0.01, weight_decay=0.0, clip_norm=0.0), params, [gradient])
  for name, (inputs, outputs) in WIDTHS.items():
    change = (moved['layers'][name]['kernel'] - params['layers'][name]['kernel']).reshape(3, inputs, outputs)
    change = np.asarray(change) / (-0.01 * 0.2 * np.sqrt(max(inputs, outputs)))
    for layer, matrix in enumerate(np.asarray(gradient['layers'][name]['kernel']).reshape(change.shape)):
      expected, singular = newton_schulz(matrix)
      np.testing.assert_allclose(change[layer], expected, atol=2e-3)
      assert np.quantile(singular, 0.1) > 0.5 and singular.max() < 1.25


def test_muon_leaves_embeddings_and_vectors_to_adamw_with_its_own_learning_rate():
  params, gradients = tree(0), [tree(1), tree(2)]
  keys = {'weight_decay': 0.3, 'clip_norm': 0.0}
  muon = updated(optimizer('muon', learning_rate=0.1, adam_learning_rate=0.01, **keys), params, gradients)
  adamw = updated(optimizer('adamw', learning_rate=0.01, **keys), params, gradients)
  for group, leaf in (('embedding', 'table'), ('position', 'table'), ('final_norm', 'scale')):
    np.testing.assert_array_equal(muon[group][leaf], adamw[group][leaf])
  for group, leaf in (('query', 'bias'), ('norm', 'scale')):
    np.testing.assert_array_equal(muon['layers'][group][leaf], adamw['layers'][group][leaf])


@pytest.mark.parametrize('name', optimizers.NAMES)
def test_decay_shrinks_matrices_and_nothing_else(name):
  params = tree(0)
  zeros = jax.tree.map(jnp.zeros_like, params)
  rates = {'learning_rate': 0.1, 'adam_learning_rate': 0.1}
  moved = updated(optimizer(name, weight_decay=0.5, **rates), params, [zeros])
  decayed = jax.tree.map(lambda matrix: 0.95 if matrix and name != 'adam' else 1.0, optimizers.matrices(AXES))
  jax.tree.map(
    lambda new, old, factor: np.testing.assert_allclose(new, factor * old, rtol=1e-6), moved, params, decayed
  )


def test_matrices_map_one_width_to_another():
  found = optimizers.matrices(AXES)
  assert found['embedding']['table'] and not found['position']['table'] and not found['final_norm']['scale']
  assert {name for name, leaves in found['layers'].items() if leaves.get('kernel')} == set(WIDTHS)
  assert not any(leaves.get('bias') or leaves.get('scale') for leaves in found['layers'].values())


@pytest.mark.parametrize('clip_norm, length, moved_by', [(2.0, 50.0, 2.0), (2.0, 1.5, 1.5), (0.0, 50.0, 50.0)])
def test_gradients_are_clipped_by_their_global_norm(clip_norm, length, moved_by):
  gradient = jax.tree.map(lambda g: g * length / optax.tree.norm(tree(1)), tree(1))
  transformation = optimizer('sgd', clip_norm=clip_norm, learning_rate=1.0, weight_decay=0.0)
  moved = updated(transformation, tree(0), [gradient])
  jax.tree.map(
    lambda new, old, g: np.testing.assert_allclose(old - new, g * moved_by / length, atol=1e-6),
    moved,
    tree(0),
    gradient,
  )


@pytest.mark.parametrize('name', optimizers.NAMES)
def test_the_state_is_a_stable_tree_of_arrays_with_moments_shaped_like_parameters(name):
  params = tree(0)
  transformation = optimizer(name)
  state = jax.eval_shape(transformation.init, params)
  _, after = jax.eval_shape(lambda *args: transformation.update(*args, grad_norm=1.0), params, state, params)
  assert state == after
  if name != 'adafactor':
    sizes = {leaf.shape for leaf in jax.tree.leaves(state) if leaf.size > 3}
    assert sizes <= {leaf.shape for leaf in jax.tree.leaves(params)}


@pytest.mark.parametrize('name', ['adamw', 'muon', 'adafactor'])
def test_each_expert_is_a_matrix_of_its_own_and_biases_of_selection_follow_the_load(name):
  axes = {
    'up': {'kernel': ('layers', 'experts', 'embed', 'mlp'), 'bias': ('layers', 'experts', 'mlp')},
    'down': {'bias': ('layers', 'experts', 'embed')},
    'router': {'kernel': ('layers', 'embed', 'experts'), 'selection_bias': ('layers', 'load')},
  }
  sizes = {'layers': 2, 'experts': 3, 'embed': 160, 'mlp': 140, 'load': 3}
  random = np.random.default_rng(0)
  draw = lambda axes: jnp.asarray(random.normal(size=[sizes[axis] for axis in axes]), jnp.float32)
  params, gradient = (jax.tree.map(draw, axes, is_leaf=lambda node: isinstance(node, tuple)) for _ in range(2))
  matrices = optimizers.matrices(axes)
  assert matrices['up'] == {'kernel': True, 'bias': False} and matrices['router']['kernel']
  assert not matrices['down']['bias'] and not matrices['router']['selection_bias']

  keys = {'name': name, 'learning_rate': 0.1, 'expert_bias_rate': 0.01, 'clip_norm': 0.0}
  new = updated(optimizer(axes=axes, **keys), params, [gradient])
  moved = new['router']['selection_bias'] - params['router']['selection_bias']
  np.testing.assert_allclose(moved, -0.01 * jnp.sign(gradient['router']['selection_bias']), atol=1e-6)
  one = lambda tree: {'kernel': tree['up']['kernel'][1, 2]}
  alone = updated(optimizer(axes={'kernel': ('embed', 'mlp')}, **keys), one(params), [one(gradient)])
  np.testing.assert_allclose(new['up']['kernel'][1, 2], alone['kernel'], rtol=1e-4, atol=1e-5)
