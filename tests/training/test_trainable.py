"""What is frozen costs no gradient and no memory and does not change; factors on the learning rate by path."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import objectives
from model import Metric
from training import configs, optimizers, program, trainable
from training.state import init_state
from training.step import make_step

AXES = {
  'embedding': {'table': ('vocab', 'embed')},
  'final_norm': {'scale': ('embed',)},
  'layers': {
    'up': {'kernel': ('layers', 'embed', 'mlp'), 'bias': ('layers', 'mlp')},
    'down': {'kernel': ('layers', 'mlp', 'embed')},
  },
}
SIZES = {'vocab': 6, 'embed': 4, 'mlp': 8, 'layers': 3}


def params_of(seed):
  generator = np.random.default_rng(seed)
  return jax.tree.map(
    lambda axes: jnp.asarray(generator.normal(size=[SIZES[a] for a in axes]), jnp.float32),
    AXES,
    is_leaf=lambda node: isinstance(node, tuple),
  )


def loss(params, batch, rng):
  del rng
  x = params['embedding']['table'][batch['tokens']] * params['final_norm']['scale']
  for i in range(SIZES['layers']):
    up, down = params['layers']['up'], params['layers']['down']
    x = x + jnp.tanh(x @ up['kernel'][i] + up['bias'][i]) @ down['kernel'][i]
  return jnp.mean(x**2), {'loss': Metric(jnp.sum(x**2), jnp.float32(x.size))}


TASK = objectives.Task(
  lambda key: params_of(0),
  AXES,
  jax.tree.map(lambda _: True, AXES, is_leaf=lambda node: isinstance(node, tuple)),
  loss,
  {'tokens': ('batch', 'length')},
  None,
)
BATCH = {'tokens': np.random.default_rng(0).integers(0, 6, (4, 5))}


def built(*overrides, ema=False):
  """A state, a step and the task of a config."""
  config = configs.load('configs/base.py', ['optimizer.schedule=constant', 'optimizer.warmup=0', *overrides]).optimizer
  task = trainable.freeze(TASK, config.frozen)
  optimizer, schedule = optimizers.build(config, task.trained(AXES), run_steps=10, warmup_steps=0, decay_steps=1)
  state = init_state(task, optimizer, None, ema)
  return (
    state,
    make_step(task, optimizer, schedule, seed=0, accumulation_steps=config.accumulation_steps, ema_decay=0.9),
    task,
  )


def changed(before, after) -> dict[str, bool]:
  """Whether each leaf differs in a bit."""
  different = jax.tree.map(lambda a, b: np.asarray(a).tobytes() != np.asarray(b).tobytes(), before, after)
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): value
    for path, value in jax.tree_util.tree_leaves_with_path(different)
  }


@pytest.mark.parametrize('name', optimizers.NAMES)
def test_frozen_leaves_stay_bit_for_bit_and_the_others_move(name):
  state, step, _ = built(
    f'optimizer.name={name}', "optimizer.frozen=('embedding', '*/down')", 'optimizer.accumulation_steps=2', ema=True
  )
  after = state
  for _ in range(2):
    after, _ = jax.jit(step)(after, BATCH)
  assert changed(state.params, after.params) == {
    'embedding/table': False,
    'final_norm/scale': True,
    'layers/down/kernel': False,
    'layers/up/bias': True,
    'layers/up/kernel': True,
  }
  assert changed(state.params, after.eval_params) == changed(state.params, after.params)


def test_frozen_leaves_have_no_memory_in_optimizer_or_average():
  state, _, _ = built(ema=True)
  part, _, task = built("optimizer.frozen=('embedding', '*/up')", ema=True)
  nbytes = lambda tree: sum(leaf.nbytes for leaf in jax.tree.leaves(tree) if leaf.ndim)
  trained = nbytes(task.trained(state.params))
  assert nbytes(part.opt_state) == 2 * trained and nbytes(part.ema) == trained
  assert nbytes(state.opt_state) == 2 * nbytes(state.params) > 2 * trained


def test_there_is_no_gradient_of_a_frozen_leaf():
  """Of the six matmuls of three layers' gradients, freezing the first input's table and a kernel leaves fewer."""

  def products(*overrides):
    state, step, _ = built(*overrides)
    return str(jax.make_jaxpr(step)(state, BATCH)).count('dot_general')

  # 6 forward; backward 6 for the inputs of every product and 6 for kernels, of which the first layer's input, read
  # from the frozen table and norm, and three kernels go away.
  assert products() == 18
  assert products("optimizer.frozen=('*/down',)") == 15
  assert products("optimizer.frozen=('*/down', 'embedding', 'final_norm')") == 14


def test_only_the_norm_of_trained_gradients_is_computed_and_only_once():
  state, step, task = built("optimizer.frozen=('layers',)", 'optimizer.clip_norm=0.001')
  jaxpr = jax.make_jaxpr(step)(state, BATCH)
  gradient = jax.grad(lambda trained: loss(objectives.merge(trained, state.params), BATCH, None)[0])(
    task.trained(state.params)
  )
  _, metrics = step(state, BATCH)
  np.testing.assert_allclose(metrics['grad_norm'].value, optax.tree.norm(gradient), rtol=1e-6)
  norms = [eqn for eqn in _equations(jaxpr.jaxpr) if eqn.primitive.name == 'sqrt' and not eqn.outvars[0].aval.shape]
  assert len(norms) == 1


def _equations(jaxpr):
  for eqn in jaxpr.eqns:
    yield eqn
    for value in eqn.params.values():
      for inner in value if isinstance(value, (tuple, list)) else [value]:
        if hasattr(inner, 'eqns') or hasattr(inner, 'jaxpr'):
          yield from _equations(getattr(inner, 'jaxpr', inner))


@pytest.mark.parametrize('name', ['sgd', 'adamw', 'muon', 'adafactor'])
def test_factors_scale_the_whole_update_of_what_they_select(name):
  options = (f'optimizer.name={name}', 'optimizer.clip_norm=0.0')
  scales = "optimizer.learning_rate_scale=(('*/up/kernel', (0.0, 0.5, 2)), ('layers', 3.0), ('embedding', 0))"
  moves = []
  for overrides in (options, (*options, scales)):
    state, step, _ = built(*overrides)
    after, _ = jax.jit(step)(state, BATCH)
    moves.append(jax.tree.map(lambda new, old: np.asarray(new - old, np.float64), after.params, state.params))
  plain, scaled = moves
  close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-6)
  close(scaled['layers']['up']['kernel'], plain['layers']['up']['kernel'] * np.reshape([0.0, 0.5, 2.0], (3, 1, 1)))
  close(scaled['layers']['down']['kernel'], 3 * plain['layers']['down']['kernel'])
  close(scaled['layers']['up']['bias'], 3 * plain['layers']['up']['bias'])
  close(scaled['final_norm']['scale'], plain['final_norm']['scale'])
  assert not scaled['embedding']['table'].any()


def test_a_run_that_freezes_nothing_has_the_state_of_before():
  """Names and shapes of a checkpoint's leaves, as they were before anything could be frozen."""
  state, _, _ = built()
  names = [
    jax.tree_util.keystr(path, simple=True, separator='/') for path, _ in jax.tree_util.tree_leaves_with_path(state)
  ]
  leaves = ['embedding/table', 'final_norm/scale', 'layers/down/kernel', 'layers/up/bias', 'layers/up/kernel']
  assert names == [
    'updates',
    *(f'params/{leaf}' for leaf in leaves),
    'opt_state/1/count',
    *(f'opt_state/1/{moment}/{leaf}' for moment in ('mu', 'nu') for leaf in leaves),
    'opt_state/3/count',
  ]


@pytest.mark.parametrize(
  'override, words',
  [
    ("optimizer.frozen=('embeding',)", "optimizer.frozen: 'embeding' matches nothing; did you mean 'embedding'"),
    ("optimizer.frozen=('*',)", 'freezes every parameter'),
    ("optimizer.learning_rate_scale=(('mlp', 2.0),)", "optimizer.learning_rate_scale: 'mlp' matches nothing"),
    ("optimizer.learning_rate_scale=('embedding', 2.0)", 'takes a pair such as'),
    ("optimizer.learning_rate_scale=(('embedding', 'slow'),)", 'takes a number'),
    ("optimizer.learning_rate_scale=(('embedding', -1),)", 'must be at least 0'),
    ("optimizer.learning_rate_scale=(('embedding', (1, 2)),)", 'is not stacked over layers'),
    ("optimizer.learning_rate_scale=(('*/bias', (1, 2)),)", 'layers/up/bias 2 factors, but it is stacked 3 times'),
  ],
)
def test_mistakes_are_refused_in_words(override, words):
  with pytest.raises(ValueError) as error:
    built(override)
  assert words in str(error.value)


@pytest.mark.slow
def test_what_is_frozen_works_on_a_mesh_with_everything_sharded():
  def run(*overrides):
    config = configs.load(
      'configs/base.py',
      [
        'model.vocab_size=64',
        'model.num_layers=2',
        'model.embed_dim=32',
        'model.num_heads=2',
        'optimizer.warmup=0',
        'data.sequence_length=16',
        'data.batch_tokens=256',
        "optimizer.frozen=('embedding', '*/mlp')",
        'optimizer.ema_decay=0.9',
        'optimizer.accumulation_steps=2',
        *overrides,
      ],
    )
    compiled = program.build(config)
    rows = {'tokens': np.random.default_rng(0).integers(0, 64, (16, 17), dtype=np.int32)}
    rows |= {'segment_ids': np.ones_like(rows['tokens']), 'positions': np.tile(np.arange(17, dtype=np.int32), (16, 1))}
    batch = objectives.Causal().examples(rows, None)
    state = compiled.init()
    before = jax.tree.map(np.array, state.params)
    state, metrics = compiled.step(state, batch)
    return before, state, metrics['grad_norm'].value

  _, _, alone = run('mesh.data=1')
  before, state, norm = run('mesh.data=1', 'mesh.fsdp=8', 'zero_stage=3')
  np.testing.assert_allclose(norm, alone, rtol=1e-5)
  moved = changed(before, state.params)
  assert {name for name, moves in moved.items() if not moves} == {
    'embedding/table',
    'layers/mlp/up/kernel',
    'layers/mlp/gate/kernel',
    'layers/mlp/down/kernel',
  }
  assert 'fsdp' in str(state.opt_state[1].mu['layers']['attention']['query']['kernel'].sharding.spec)
  assert state.opt_state[1].mu['embedding']['table'] is None
