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


def test_a_failed_write_is_reported(tmp_path):
  directory = tmp_path / 'checkpoints'
  directory.write_text('a file where the directory should be')
  with (
    pytest.raises(CheckpointError, match=f'could not write checkpoint {directory}/1'),
    Checkpoints(directory) as saved,
  ):
    saved.save(1, make_state(), {})


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


LAYOUTS = {
  'whole': ((8,), {'w': PartitionSpec(), 'b': PartitionSpec()}),
  'rows': ((8,), {'w': PartitionSpec('a'), 'b': PartitionSpec('a')}),
  'both': ((4, 2), {'w': PartitionSpec('a', 'b'), 'b': PartitionSpec('b')}),
  'columns': ((2, 4), {'w': PartitionSpec(None, ('b', 'a')), 'b': PartitionSpec()}),
}


def laid_out(name):
  sizes, specs = LAYOUTS[name]
  mesh = jax.make_mesh(sizes, ('a', 'b')[: len(sizes)], axis_types=(jax.sharding.AxisType.Auto,) * len(sizes))
  shapes = {'w': ((64, 128), jnp.float32), 'b': ((8,), jnp.bfloat16), 'n': ((), jnp.int32)}
  specs = specs | {'n': PartitionSpec()}
  return {key: jax.ShapeDtypeStruct(*shape, sharding=NamedSharding(mesh, specs[key])) for key, shape in shapes.items()}


def values_in(name):
  table = np.arange(8192, dtype=np.float32).reshape(64, 128) + 0.5
  values = {'w': table, 'b': np.ones(8, jnp.bfloat16), 'n': np.int32(7)}
  return {key: jax.device_put(values[key], leaf.sharding) for key, leaf in laid_out(name).items()}


@pytest.mark.parametrize('saved', LAYOUTS)
def test_any_layout_restores_into_any_other_and_a_bit_flipped_in_one_shard_is_found(tmp_path, saved):
  state = values_in(saved)
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, state, {})
  for wanted in LAYOUTS:
    restored, _ = checkpoints.restore(1, laid_out(wanted))
    assert bits(restored) == bits(state)
    assert all(restored[key].sharding == leaf.sharding for key, leaf in laid_out(wanted).items())
  shard = np.asarray(state['w'].addressable_shards[-1].data).tobytes()
  for file in (tmp_path / '1' / 'state').rglob('*'):
    if file.is_file() and shard in (content := bytearray(file.read_bytes())):
      content[content.index(shard) + len(shard) // 2] ^= 4
      file.write_bytes(content)
  for wanted in LAYOUTS:
    with pytest.raises(CheckpointError, match='1 is damaged: w does not have the checksum'):
      checkpoints.restore(1, laid_out(wanted))


def test_each_shard_is_stored_once_and_nothing_whole(tmp_path):
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, values_in('both'), {})
  stored = checkpoints.open_arrays(1).stored
  assert stored['w'].cell == (16, 64) and len(stored['w'].checksums) == 8
  assert stored['b'].cell == (4,) and len(stored['b'].checksums) == 2  # four copies of each half


def test_a_lost_or_changed_checksum_is_refused(tmp_path):
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, values_in('rows'), {})
  file = tmp_path / '1' / 'checksums' / '0.json'
  text = file.read_text()
  number = next(part for part in text.split() if part.rstrip(',}').isdecimal() and len(part) > 5)
  file.write_text(text.replace(number, ('1' if number[0] != '1' else '2') + number[1:], 1))
  with pytest.raises(CheckpointError, match='its checksums/0.json does not have the checksum'):
    checkpoints.restore(1, laid_out('rows'))
  file.unlink()
  with pytest.raises(CheckpointError, match='its checksums/0.json'):
    checkpoints.restore(1, laid_out('rows'))


@pytest.mark.parametrize('name', ['saved', 'parts'])
def test_a_checkpoint_of_before_restores(tmp_path, name):
  """Written when each array had one checksum; see golden/make_old_checkpoints.py."""
  subprocess.run(['cp', '-r', f'{ROOT}/tests/golden/old_checkpoints/{name}', tmp_path / '40'], check=True)
  checkpoints = Checkpoints(tmp_path)
  expected = {'params': {'w': np.arange(2048, dtype=np.float32).reshape(4, 512), 'b': np.ones(4, np.float32)}}
  fields, metadata = checkpoints.restore_fields(40)
  assert bits(fields) == bits(expected) and metadata == {'step': 40}
  mesh = jax.make_mesh((4,), ('a',), axis_types=(jax.sharding.AxisType.Auto,))
  sharding = NamedSharding(mesh, PartitionSpec('a'))
  abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), expected)
  restored, _ = checkpoints.restore(40, abstract)
  assert bits(restored) == bits(expected) and restored['params']['w'].sharding == sharding
  pattern = expected['params']['w'].tobytes()[:256]
  for file in (tmp_path / '40' / 'state').rglob('*'):
    if file.is_file() and pattern in (content := bytearray(file.read_bytes())):
      content[content.index(pattern) + 5] ^= 1
      file.write_bytes(content)
  with pytest.raises(CheckpointError, match='40 is damaged: params/w does not have the checksum'):
    checkpoints.restore(40, abstract)


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


def test_params_sha256_is_the_same_in_every_layout_and_on_the_host():
  reference = params_sha256(jax.device_get(values_in('whole')))
  assert {params_sha256(values_in(name)) for name in LAYOUTS} == {reference}


def test_params_sha256_sees_one_bit_and_two_values_in_each_others_place():
  values = np.random.default_rng(0).standard_normal((6, 5)).astype(np.float32)
  seen = {params_sha256({'w': values}), params_sha256({'w': values[::-1]}), params_sha256({'w': values[:, ::-1]})}
  for place in range(30):
    flipped = values.copy()
    flipped.view(np.uint32).reshape(-1)[place] ^= 1 << place
    seen.add(params_sha256({'w': flipped}))
  assert len(seen) == 33
