"""One training step of each shipped tiny config, its metrics pinned; in bfloat16, as shipped, through the real step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from training import configs, program

# A change of these numbers is a change of what is trained. If that is what you want, say so in the commit and put the
# new ones here; if you only moved code, something moved with it.
PINNED = {
  ('configs/quickstart.py:tiny', 'bfloat16'): {
    'loss': 5.787824,
    'total_loss': 5.787824,
    'accuracy': 0.003929273,
    'grad_norm': 0.3916305,
    'update': 0.06107585,
    'learning_rate': 0.001,
    'finite': 1.0,
  },
  ('configs/quickstart.py:tiny', 'float32'): {
    'loss': 5.787825,
    'total_loss': 5.787825,
    'accuracy': 0.003929273,
    'grad_norm': 0.3920163,
    'update': 0.06107402,
    'learning_rate': 0.001,
    'finite': 1.0,
  },
}


@pytest.mark.parametrize('path, dtype', PINNED)
@pytest.mark.optimised
def test_one_steps_metrics(path, dtype):
  config = configs.load(path, ['model.vocab_size=320', f'precision.dtype={dtype}'])
  built = program.build(config)
  rows = config.data.batch_tokens // config.data.sequence_length
  random = np.random.default_rng(0)
  shape = (rows, config.data.sequence_length)
  batch = {
    'tokens': random.integers(0, 257, shape, np.int32),
    'labels': random.integers(-1, 257, shape, np.int32),
    'segment_ids': np.ones(shape, np.int32),
    'positions': np.indices(shape, np.int32)[1],
  }
  state = built.init()
  first = jax.device_get(state.params)
  state, metrics = built.step(state, batch)
  found = {name: metric.value for name, metric in metrics.items()}
  moved = jax.tree.map(lambda old, new: float(jnp.linalg.norm(new - old)), first, jax.device_get(state.params))
  found['update'] = float(np.linalg.norm(jax.tree.leaves(moved)))
  pinned = PINNED[path, dtype]
  words = {name: f'{value:.7g}' for name, value in found.items()}
  assert found == pytest.approx(pinned, rel=3e-4 if dtype == 'float32' else 3e-3), f'see PINNED; now {words}'


def test_every_product_of_the_compiled_step_takes_bfloat16():
  config = configs.load('configs/quickstart.py:tiny', ['model.vocab_size=320', 'optimizer.name=adamw'])
  built = program.build(config)
  shape = (config.data.batch_tokens // config.data.sequence_length, config.data.sequence_length)
  batch = {name: jax.ShapeDtypeStruct(shape, jnp.int32) for name in built.task.batch_axes}
  text = built.step.lower(built.abstract_state, batch).as_text()
  products = [line for line in text.splitlines() if 'dot_general' in line]
  assert len(products) > 40 and all(line.count('xbf16>') == 2 and 'xf32>' in line for line in products)
