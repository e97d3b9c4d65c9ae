"""What several processes agree on, as far as one process can tell; tests/training/test_hosts.py starts several."""

import time

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from parallel import hosts

SLURM = {
  'SLURM_JOB_ID': '7',
  'SLURM_STEP_NODELIST': 'n[1-2]',
  'SLURM_NTASKS': '16',
  'SLURM_PROCID': '3',
  'SLURM_LOCALID': '3',
}


@pytest.mark.parametrize(
  'environment, found',
  [
    ({}, None),
    (SLURM, 'slurm'),
    (SLURM | {'SLURM_NTASKS': '1'}, None),
    ({name: SLURM[name] for name in SLURM if name != 'SLURM_STEP_NODELIST'}, None),  # inside sbatch, before srun
    ({'OMPI_COMM_WORLD_SIZE': '4', 'OMPI_COMM_WORLD_RANK': '0'}, 'ompi'),
    ({'OMPI_COMM_WORLD_SIZE': '1'}, None),
    ({'KUBERNETES_SERVICE_HOST': '10.0.0.1', 'JOB_COMPLETION_INDEX': '2'}, 'k8s'),
    ({'KUBERNETES_SERVICE_HOST': '10.0.0.1'}, None),
  ],
)
def test_launchers_are_told_apart(environment, found, tmp_path):
  assert hosts.launcher(environment, str(tmp_path)) == found


@pytest.mark.parametrize(
  'vendor, device, platforms, found',
  [
    ('0x1ae0', '0x0063', '', 'tpu'),
    ('0x1ae0', '0x0063', 'cpu', None),
    ('0x1ae0', '0x0042', '', None),  # a network card of the same house
    ('0x10de', '0x0063', '', None),
  ],
)
def test_a_tpu_host_may_belong_to_a_pod(vendor, device, platforms, found, tmp_path, monkeypatch):
  monkeypatch.setattr(hosts.importlib.util, 'find_spec', lambda name: object())
  (tmp_path / '0000:00:04.0').mkdir()
  (tmp_path / '0000:00:04.0' / 'vendor').write_text(vendor + '\n')
  (tmp_path / '0000:00:04.0' / 'device').write_text(device + '\n')
  assert hosts.launcher({'JAX_PLATFORMS': platforms}, str(tmp_path)) == found


@pytest.mark.parametrize(
  'given, words',
  [
    ((None, 2, None), '--coordinator, --process_id is missing'),
    (('a:1', 2, None), '--process_id is missing'),
    (('a:1', 2, 2), '--process_id=2 must be from 0 to 1'),
    (('a', 2, 0), 'a:8476'),
  ],
)
def test_flags_that_do_not_fit_are_refused(given, words):
  with pytest.raises(ValueError, match=words):
    hosts.start(*given)


def test_one_process_alone_starts_nothing(monkeypatch):
  monkeypatch.setattr(jax.distributed, 'initialize', None)  # not to be called
  for name in (*SLURM, 'KUBERNETES_SERVICE_HOST', 'OMPI_COMM_WORLD_SIZE'):
    monkeypatch.delenv(name, raising=False)
  hosts.start()
  hosts.start(num_processes=1)
  hosts.agree(3, 'nothing')
  assert hosts.is_first() and hosts.fail(1) == 1


def test_what_a_launcher_says_goes_to_jax_and_its_failure_into_words(monkeypatch):
  def initialize(*addresses, cluster_detection_method, **options):
    calls.append((addresses, cluster_detection_method))
    raise RuntimeError('nobody came')

  calls = []
  monkeypatch.setattr(jax.distributed, 'initialize', initialize)
  for name, value in SLURM.items():
    monkeypatch.setenv(name, value)
  with pytest.raises(ConnectionError, match=r'this run \(slurm\) did not come together: nobody came'):
    hosts.start()
  with pytest.raises(ConnectionError, match=r'\(a:1\)'):
    hosts.start('a:1', 2, 0)
  assert calls == [((None, None, None), 'slurm'), (('a:1', 2, 0), 'deactivate')]


class Owned:
  """A sharding of which this process has some devices only."""

  def __init__(self, sharding, devices):
    self._sharding, self._devices = sharding, devices

  def addressable_devices_indices_map(self, shape):
    found = self._sharding.devices_indices_map(shape)
    return {device: found[device] for device in self._devices}


@pytest.mark.parametrize(
  'spec, mine, rows',
  [
    (PartitionSpec('a'), [0, 1, 2, 3], range(8)),
    (PartitionSpec('a', 'b'), [0, 1, 2, 3], range(8)),
    (PartitionSpec('b'), [0, 1, 2, 3], range(16)),  # each process has all of b
    (PartitionSpec(('b', 'a')), [0, 1, 2, 3], [0, 1, 2, 3, 8, 9, 10, 11]),
    (PartitionSpec(), [4], range(16)),
  ],
)
def test_local_rows_are_those_of_the_devices(spec, mine, rows, monkeypatch):
  mesh = jax.make_mesh((4, 2), ('a', 'b'), axis_types=(AxisType.Auto,) * 2)
  sharding = NamedSharding(mesh, spec)
  assert hosts.local_rows({'tokens': sharding}, 16).tolist() == list(range(16))
  devices = [mesh.devices.flat[i] for i in mine]
  monkeypatch.setattr(hosts, 'NamedSharding', lambda mesh, spec: Owned(NamedSharding(mesh, spec), devices))
  assert hosts.local_rows({'tokens': sharding, 'labels': sharding}, 16).tolist() == list(rows)


def test_a_process_without_rows_is_told_so(monkeypatch):
  sharding = NamedSharding(jax.make_mesh((4, 2), ('a', 'b'), axis_types=(AxisType.Auto,) * 2), PartitionSpec('a'))
  monkeypatch.setattr(hosts, 'NamedSharding', lambda mesh, spec: Owned(NamedSharding(mesh, spec), []))
  with pytest.raises(ValueError, match='the mesh uses no device of process 0: of 8 devices'):
    hosts.local_rows({'tokens': sharding}, 16)


def test_a_batch_is_placed_over_the_mesh():
  mesh = jax.make_mesh((4, 2), ('a', 'b'), axis_types=(AxisType.Auto,) * 2)
  batch = {'tokens': np.arange(32, dtype=np.int32).reshape(16, 2)}
  shardings = {'tokens': NamedSharding(mesh, PartitionSpec('a', 'b'))}
  placed = hosts.global_batch(batch, shardings, 16)
  np.testing.assert_array_equal(placed['tokens'], batch['tokens'])
  assert placed['tokens'].sharding == shardings['tokens']


@pytest.fixture
def ended(monkeypatch):
  """As one of two processes; the statuses with which it would have ended."""
  statuses = []
  monkeypatch.setattr(hosts, '_end', statuses.append)
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  return statuses


def test_the_watchdog_ends_a_process_when_nothing_goes_on(ended, capsys):
  with hosts.Watchdog(0.2, 'Start again') as watchdog:
    time.sleep(0.4)  # the first step may take long
    assert not ended
    for _ in range(8):
      watchdog.alive()
      time.sleep(0.05)
    assert not ended
    time.sleep(0.5)
  assert ended and set(ended) == {1}
  assert 'error: process 0 of 2 ends: nothing went on for 0.2 s (train.step_timeout)' in capsys.readouterr().err


def test_the_watchdog_says_that_the_exchange_broke(ended, capsys):
  with pytest.raises(jax.errors.JaxRuntimeError), hosts.Watchdog(0, 'Start again'):
    raise jax.errors.JaxRuntimeError('Gloo all-reduce failed: Connection closed by peer')
  assert ended == [1] and 'Connection closed by peer. Start again' in capsys.readouterr().err


def test_one_process_is_not_watched(capsys):
  with hosts.Watchdog(0.05, '') as watchdog:
    watchdog.alive()
    time.sleep(0.2)
  with pytest.raises(jax.errors.JaxRuntimeError), hosts.Watchdog(0.05, ''):
    raise jax.errors.JaxRuntimeError('out of memory')
  assert not capsys.readouterr().err


def test_a_length_that_devices_cannot_share_is_refused_in_words():
  mesh = jax.make_mesh((2, 4), ('data', 'sequence'), axis_types=(AxisType.Auto,) * 2)
  sharding = {'tokens': NamedSharding(mesh, PartitionSpec(('data',), ('sequence',)))}
  with pytest.raises(ValueError, match=r"'tokens' of a batch has the shape \(2, 114\), and mesh.sequence = 4 devices"):
    hosts.global_batch({'tokens': np.zeros((2, 114), np.int32)}, sharding, 2)
  assert hosts.global_batch({'tokens': np.zeros((2, 128), np.int32)}, sharding, 2)['tokens'].shape == (2, 128)
