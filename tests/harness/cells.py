"""Small runs of every kind of stack on every layout, through the code that trains.

A cell is a stack on a layout. Its program is compiled once and runs five steps, dropout on, on packed rows.
"""

import dataclasses
import functools

import jax
import numpy as np

from training import configs, program

STEPS = 5
ROWS, LENGTH, VOCAB = 8, 16, 96

# Key paths of the config with __ for a dot.
_COMMON = {
  'data__sequence_length': LENGTH,
  'data__batch_tokens': ROWS * LENGTH,
  'model__vocab_size': VOCAB,
  'model__num_layers': 2,
  'model__embed_dim': 32,
  'model__num_heads': 4,
  'model__mlp_dim': 48,
  'model__init_scale': 0.2,
  'model__layer_loop': 'scan',
  'model__dropout_rate': 0.1,
  'model__attention__dropout_rate': 0.1,
  'optimizer__learning_rate': 0.01,
  'optimizer__warmup': 1,
  # Far above the noise of sums in another order, which small gradients would else turn into whole steps.
  'optimizer__epsilon': 0.001,
  'optimizer__clip_norm': 0.0,
  'train__steps': 20,
  'mesh__data': 1,
}
_ENCODER = {
  'model__family': 'encoder',
  'objective__name': 'masked',
  'model__norm': 'layernorm',
  'model__use_bias': True,
  'model__gated_mlp': False,
  'model__activation': 'gelu',
}
STACKS = {
  'decoder': {'model__num_kv_heads': 2},
  'encoder': _ENCODER
  | {
    'model__positions': 'learned',
    'model__norm_position': 'post',
    'model__embedding_norm': True,
    'model__token_types': 2,
    'model__head_transform': True,
    'model__head_bias': True,
  },
  'encoder_decoder': {
    'model__family': 'encoder_decoder',
    'objective__name': 'span_corruption',
    'model__positions': 't5',
    'model__tie_embeddings': False,
  },
  'moe': {
    'model__moe__num_experts': 4,
    'model__moe__mlp_dim': 16,
    'model__moe__shared_mlp_dim': 16,
    'model__moe__z_loss': 0.001,
    'model__norm_position': 'sandwich',
  },
  # One key head, a vocabulary and a width of heads that few meshes divide.
  'odd': {
    'model__num_kv_heads': 1,
    'model__vocab_size': 97,
    'model__head_dim': 6,
    'model__parallel_blocks': True,
    'model__attention__sinks': True,
    'model__attention__qk_norm': True,
    'optimizer__ema_decay': 0.9,
  },
  'latent': {
    'model__attention__latent__query_rank': 12,
    'model__attention__latent__key_value_rank': 8,
    'model__attention__latent__rotary_dim': 4,
  },
  'shaw': _ENCODER | {'model__positions': 'shaw'},
  'alibi': {'model__positions': 'alibi', 'model__num_kv_heads': 2},
  'xlnet': _ENCODER | {'model__positions': 'xlnet', 'objective__name': 'permutation', 'model__token_types': 2},
}


@dataclasses.dataclass(frozen=True)
class Result:
  """What a run gave: numpy arrays.

  Attributes:
    losses: of each step.
    gradients: tree of the first step's.
    params: tree after the last step.
  """

  losses: np.ndarray
  gradients: dict
  params: dict


def config(stack: str, **changes):
  """The config of a stack with other values, named as in `STACKS`."""
  values = {**_COMMON, **STACKS[stack], **changes}
  return configs.load('configs/base.py', [f'{key.replace("__", ".")}={value}' for key, value in values.items()])


def build(stack: str, **changes) -> program.Program:
  """The program of a cell."""
  resolved = config(stack, **changes)
  with resolved.model.unlocked():
    resolved.model.max_length = LENGTH
  return program.build(resolved)


def batch(built: program.Program, seed: int, rows: int = ROWS) -> dict:
  """Random rows of several segments and some padding, for any objective."""
  random, arrays = np.random.default_rng(seed), {}
  segment_ids = np.sort(random.integers(1, 4, (rows, LENGTH)), axis=1).astype(np.int32)
  segment_ids[seed % rows, LENGTH - 3 :] = 0
  starts = np.maximum.accumulate(np.where(np.diff(segment_ids, axis=1, prepend=0) != 0, np.arange(LENGTH), 0), axis=1)
  for name in built.task.batch_axes:
    if name.endswith('segment_ids'):
      arrays[name] = segment_ids
    elif name.endswith('positions'):
      arrays[name] = (np.arange(LENGTH) - starts).astype(np.int32)
    elif name == 'order':
      arrays[name] = random.integers(0, 4, (rows, LENGTH)).astype(np.int32)
    elif name == 'targets':
      arrays[name] = random.integers(0, LENGTH, (rows, 4)).astype(np.int32)
    elif name == 'labels' and 'targets' in built.task.batch_axes:
      arrays[name] = random.integers(-1, VOCAB, (rows, 4)).astype(np.int32)
    else:
      lowest = -1 if name == 'labels' else 0
      arrays[name] = random.integers(lowest, VOCAB, (rows, LENGTH)).astype(np.int32)
  return arrays


def run(built: program.Program, steps: int = STEPS) -> Result:
  """Trains from the beginning; the gradient is read from the first moment after one step."""
  state, losses, gradients = built.init(), [], None
  for step in range(steps):
    state, metrics = built.step(state, batch(built, step))
    losses.append(float(metrics['total_loss'].value))
    if step == 0:
      gradients = jax.tree.map(lambda moment: np.asarray(moment) / 0.1, moments(state.opt_state))
  return Result(np.array(losses), gradients, jax.tree.map(np.asarray, state.params))


def moments(opt_state) -> dict:
  """The first moments of adamw, a tree like the parameters."""
  (found,) = [part.mu for part in jax.tree.leaves(opt_state, is_leaf=lambda x: hasattr(x, 'mu')) if hasattr(part, 'mu')]
  return found


@functools.cache
def baseline(stack: str, **changes) -> Result:
  """The run of a stack on one device."""
  return run(build(stack, **changes))


def differences(got: Result, expected: Result) -> dict[str, float]:
  """Relative L2 distance of the losses, and of every leaf of the gradients and of the parameters.

  A leaf that has less than a millionth of the norm of all is rounding of what is 0, as the gradient of a bias of keys,
  which softmax takes no notice of: two such are the same.
  """
  found = {'losses': _distance(got.losses, expected.losses, 0.0)}
  for kind in ('gradients', 'params'):
    ours, theirs = getattr(got, kind), getattr(expected, kind)
    noise = 1e-6 * np.sqrt(sum(np.sum(leaf**2) for leaf in jax.tree.leaves(theirs)))
    pairs = jax.tree.map(functools.partial(_distance, noise=noise), ours, theirs)
    for path, value in jax.tree.leaves_with_path(pairs):
      found[f'{kind}/{jax.tree_util.keystr(path, simple=True, separator="/")}'] = value
  return found


def _distance(one, other, noise) -> float:
  if max(np.linalg.norm(one), np.linalg.norm(other)) < noise:
    return 0.0
  return float(np.linalg.norm(one - other) / np.linalg.norm(other))
