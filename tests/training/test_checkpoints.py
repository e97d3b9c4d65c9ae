"""Checkpoints: what is restored is what was saved, bit for bit, or the restore is refused in words."""

import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from training.checkpoints import CheckpointError, Checkpoints
from training.params import params_sha256

ROOT = pathlib.Path(__file__).resolve().parents[2]


def make_state(seed=0):
  weights = jax.random.normal(jax.random.key(seed), (16, 8))
  params = {'embedding': weights, 'layers': {'scale': jnp.ones((3,), jnp.bfloat16)}}
  return {
    'params': params,
    'optimizer': optax.adamw(1e-3).init(params),
    'rng': jax.random.key(seed + 1),
    'done': jnp.asarray(False),
  }


def bits(state):
  raw = [
    jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in jax.tree.leaves(state)
  ]
  return [(x.dtype, x.shape, np.asarray(x).tobytes()) for x in raw]


def save_steps(directory, steps, metrics=None, keep_last=10):
  with Checkpoints(directory, keep_last) as checkpoints:
    for step in steps:
      checkpoints.save(step, make_state(step), {'step': step}, (metrics or {}).get(step))


def test_restores_every_bit_and_the_metadata(tmp_path):
  metadata = {'data': {'position': 2**70, 'epoch': 1.5}, 'config': {'name': 'é'}}
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(7, make_state(), metadata)
    metadata['data']['epoch'] = 'changed after the save'
    checkpoints.wait()
    state, restored = checkpoints.restore(7, jax.eval_shape(make_state))
  assert bits(state) == bits(make_state())
  assert jax.tree.structure(state) == jax.tree.structure(make_state())
  assert jax.random.bits(state['rng']) == jax.random.bits(make_state()['rng'])
  assert restored == {'data': {'position': 2**70, 'epoch': 1.5}, 'config': {'name': 'é'}}


def test_training_on_after_save_does_not_touch_the_saved_values(tmp_path):
  step = jax.jit(lambda state: jax.tree.map(lambda x: x * 3 + 1, state), donate_argnums=0)
  state = step({f'w{i}': jnp.full((256, 1024), float(i)) for i in range(8)})
  expected = bits(state)
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, state, {})
    pointer = state['w0'].unsafe_buffer_pointer()
    first = step(state)
    donated, reused = state['w0'].is_deleted(), first['w0'].unsafe_buffer_pointer() == pointer
    for _ in range(20):
      first = step(first)
    jax.block_until_ready(first)
    checkpoints.wait()
    restored, _ = checkpoints.restore(1, jax.eval_shape(lambda: {f'w{i}': jnp.zeros((256, 1024)) for i in range(8)}))
  assert bits(restored) == expected
  assert donated and reused, 'the host copy kept the buffer alive, so that the step needs twice the memory'


@pytest.fixture(scope='module')
def pristine(tmp_path_factory):
  directory = tmp_path_factory.mktemp('pristine')
  save_steps(directory, [20, 40])
  return directory


def copy(pristine, tmp_path):
  subprocess.run(['cp', '-r', f'{pristine}/.', tmp_path], check=True)
  return Checkpoints(tmp_path)


@pytest.mark.parametrize('seed', range(4))
def test_one_flipped_bit_in_an_array_is_refused_with_its_path(tmp_path, seed):
  generator = random.Random(seed)
  state = {'params': {name: jax.random.normal(jax.random.key(i), (128, 64)) for i, name in enumerate('abc')}}
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(60, state, {})
  name = generator.choice('abc')
  pattern = np.asarray(state['params'][name]).tobytes()
  path = next(path for path in tmp_path.rglob('d/*') if pattern in path.read_bytes())
  content = bytearray(path.read_bytes())
  content[content.find(pattern) + generator.randrange(len(pattern))] ^= 1 << generator.randrange(8)
  path.write_bytes(content)
  with pytest.raises(CheckpointError, match=rf'{tmp_path}/60 is damaged: params/{name} does not have the checksum'):
    checkpoints.restore(60, jax.eval_shape(lambda: state))


# Orbax closes its event loop while other reads are still on their way.
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_a_bit_flipped_anywhere_is_refused_or_changes_nothing(pristine, tmp_path):
  checkpoints = copy(pristine, tmp_path)
  generator = random.Random(1)
  abstract, expected = jax.eval_shape(make_state), bits(make_state(40))
  files = [path for path in sorted((tmp_path / '40').rglob('*')) if path.is_file() and path.stat().st_size]
  refused = 0
  for path in files * 3:
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
    path.write_bytes(flipped)
    try:
      state, metadata = checkpoints.restore(40, abstract)
    except CheckpointError as error:
      refused += 1
      assert 'go on from step 20' in str(error)
    else:
      assert bits(state) == expected and metadata == {'step': 40}
    path.write_bytes(content)
  assert refused >= len(files) // 2  # the rest is files that a restore does not need


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_a_truncated_file_is_refused_saying_how_to_go_on(pristine, tmp_path):
  checkpoints = copy(pristine, tmp_path)
  largest = max((tmp_path / '40').rglob('d/*'), key=lambda path: path.stat().st_size)
  os.truncate(largest, largest.stat().st_size // 2)
  with pytest.raises(CheckpointError, match=rf'go on from step 20, delete it \(rm -r {tmp_path}/40\)'):
    checkpoints.restore(40, jax.eval_shape(make_state))
  checkpoints.restore(20, jax.eval_shape(make_state))


def test_only_whole_steps_are_listed(pristine, tmp_path):
  checkpoints = copy(pristine, tmp_path)
  for name in ('60', '80/state', '100.orbax-checkpoint-tmp/state', 'notes'):
    (tmp_path / name).mkdir(parents=True)
  assert checkpoints.steps() == [20, 40] and checkpoints.latest_step() == 40
  with pytest.raises(CheckpointError, match='no checkpoint of step 60; it has: 20, 40'):
    checkpoints.restore(60, jax.eval_shape(make_state))
  with checkpoints:
    checkpoints.save(60, make_state(60), {})
  assert checkpoints.latest_step() == 60
  assert not list(tmp_path.glob('*tmp*'))
  assert Checkpoints(tmp_path / 'none').latest_step() is None


def test_keeps_the_last_ones_and_the_best(tmp_path):
  metrics = {10: float('nan'), 20: 3.0, 30: 2.0, 40: 2.5, 60: float('inf')}
  save_steps(tmp_path, range(10, 80, 10), metrics, keep_last=2)
  checkpoints = Checkpoints(tmp_path)
  assert checkpoints.steps() == [30, 60, 70] and checkpoints.best_step() == 30
  (tmp_path / '30/metadata/metadata').write_text('{')  # an old one that is damaged does not stop the run
  with Checkpoints(tmp_path, 1) as checkpoints:
    checkpoints.save(80, make_state(), {})
  assert checkpoints.steps() == [80]


def test_a_state_that_does_not_fit_is_refused_in_words(pristine):
  checkpoints = Checkpoints(pristine)

  def refused(change):
    abstract = jax.eval_shape(make_state)
    change(abstract['params'])
    with pytest.raises(CheckpointError) as error:
      checkpoints.restore(40, abstract)
    return str(error.value)

  f32 = jnp.float32
  assert 'params/embedding is float32[16, 8] in the checkpoint, float32[16, 9] here' in refused(
    lambda params: params.update(embedding=jax.ShapeDtypeStruct((16, 9), f32))
  )
  assert 'params/embedding is float32[16, 8] in the checkpoint, float16[16, 8] here' in refused(
    lambda params: params.update(embedding=jax.ShapeDtypeStruct((16, 8), jnp.float16))
  )
  assert 'params/head is not in the checkpoint' in refused(
    lambda params: params.update(head=jax.ShapeDtypeStruct((), f32))
  )
  assert 'params/layers/scale is in the checkpoint only' in refused(lambda params: params.pop('layers'))


def test_restores_fields_without_the_optimizer(pristine):
  fields, metadata = Checkpoints(pristine).restore_fields(40, ('params', 'ema_params'))
  assert fields.keys() == {'params'} and metadata == {'step': 40}
  assert params_sha256(fields['params']) == params_sha256(make_state(40)['params'])


def test_a_failed_write_is_reported_at_wait(tmp_path):
  directory = tmp_path / 'checkpoints'
  directory.write_text('a file where the directory should be')
  checkpoints = Checkpoints(directory)
  checkpoints.save(1, make_state(), {})
  with pytest.raises(CheckpointError, match=f'could not write checkpoint {directory}/1'):
    checkpoints.close()


def test_restores_across_meshes(tmp_path):
  shapes = {'w': (16, 8), 'b': (8,)}

  def sharded(axis):
    mesh = jax.make_mesh((8,), (axis,), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec('fsdp') if axis == 'fsdp' else PartitionSpec())
    return {name: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding) for name, shape in shapes.items()}

  saved = {
    name: jax.device_put(jax.random.normal(jax.random.key(1), leaf.shape), leaf.sharding)
    for name, leaf in sharded('data').items()
  }
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, saved, {})
    checkpoints.wait()
    over, _ = checkpoints.restore(1, sharded('fsdp'))
    assert over['w'].addressable_shards[0].data.shape == (2, 8)
    checkpoints.save(2, over, {})
    checkpoints.wait()
    back, _ = checkpoints.restore(2, sharded('data'))
    single, _ = checkpoints.restore(
      2, {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    )
  assert len(back['w'].sharding.device_set) == 8 and len(single['w'].sharding.device_set) == 1
  assert bits(saved) == bits(over) == bits(back) == bits(single)


KILLED = """
import sys, jax, jax.numpy as jnp
from training.checkpoints import Checkpoints
with Checkpoints(sys.argv[1], keep_last=1) as checkpoints:
  step = (checkpoints.latest_step() or 0) + 1
  while True:
    checkpoints.save(step, {f'w{i}': jnp.full((512, 1024), float(step)) for i in range(4)}, {'step': step})
    print(step, flush=True)
    step += 1
"""


def test_killed_at_any_moment_the_last_whole_checkpoint_is_good(tmp_path):
  abstract = jax.eval_shape(lambda: {f'w{i}': jnp.zeros((512, 1024)) for i in range(4)})
  generator = random.Random(0)
  latest = 0
  for _ in range(4):
    process = subprocess.Popen([sys.executable, '-c', KILLED, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE)
    for _ in range(3):
      process.stdout.readline()
    time.sleep(generator.uniform(0, 0.08))  # about the time of one write
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    checkpoints = Checkpoints(tmp_path)
    step = checkpoints.latest_step()
    state, metadata = checkpoints.restore(step, abstract)
    assert metadata == {'step': step} and all((np.asarray(w) == step).all() for w in state.values())
    assert step > latest
    latest = step


def test_params_sha256_sees_names_dtypes_shapes_and_bits():
  tree = {'b': np.arange(6, dtype=np.float32), 'a': {'c': np.zeros(2, np.int32)}}
  reference = params_sha256(tree)
  assert reference == params_sha256({'a': {'c': jnp.zeros(2, jnp.int32)}, 'b': jnp.arange(6, dtype=jnp.float32)})
  changed = [
    tree | {'b': tree['b'].reshape(2, 3)},
    tree | {'b': -tree['b']},
    {'d': tree['b'], 'a': tree['a']},
    tree | {'a': {'c': np.zeros(2, np.uint32)}},
    {'b': tree['b'], 'a': {'d': np.zeros(2, np.int32)}},
  ]
  assert len({reference, *map(params_sha256, changed)}) == len(changed) + 1
  transposed = np.arange(6, dtype=np.float32).reshape(3, 2).T
  assert params_sha256({'w': transposed}) == params_sha256({'w': np.ascontiguousarray(transposed)})
