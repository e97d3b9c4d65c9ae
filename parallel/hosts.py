"""Several processes as one run: how they find each other, share rows, stop together and end when one of them is lost.

A process is one host, or one of several on it; with one process nothing here costs or changes anything.
"""

import glob
import importlib.util
import itertools
import math
import os
import pathlib
import sys
import threading
import time
from collections.abc import Callable, Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

_CONNECT_SECONDS = 300  # in which all processes have to be there
_BARRIER_SECONDS = 3600  # in which all have to get to a barrier; compiling may be before it
_numbers = itertools.count()  # of barriers and keys, which all processes use in the same order
# What launchers tell each process, and how many processes there are.
_SLURM = ('SLURM_JOB_ID', 'SLURM_STEP_NODELIST', 'SLURM_NTASKS', 'SLURM_PROCID', 'SLURM_LOCALID')
_GOOGLE_TPUS = ('0x0027', '0x0056', '0x005e', '0x0062', '0x0063', '0x006f', '0x0076')  # PCI devices, v2 to TPU7x


def start(coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None) -> None:
  """Joins the processes of this run; to be called before JAX looks for devices. One process alone returns at once.

  Args:
    coordinator: HOST:PORT of process 0, as all processes can reach it.
    num_processes: of the run.
    process_id: of this one, from 0. Without all three: what the launcher tells, see `launcher`.

  Raises:
    ValueError: some but not all three are given, or do not fit.
    ConnectionError: not all processes came, or JAX does not understand the launcher.
  """
  given = {'coordinator': coordinator, 'num_processes': num_processes, 'process_id': process_id}
  missing = [f'--{name}' for name, value in given.items() if value is None]
  if num_processes == 1 and coordinator is None:
    return
  if 0 < len(missing) < 3:
    raise ValueError(
      f'--coordinator=HOST:PORT, --num_processes=N and --process_id=I go together; {", ".join(missing)} is missing'
    )
  if not missing and not 0 <= process_id < num_processes:
    raise ValueError(f'--process_id={process_id} must be from 0 to {num_processes - 1}, below --num_processes')
  if not missing and ':' not in coordinator:
    raise ValueError(
      f'--coordinator={coordinator} has no port; give one that is free there, such as {coordinator}:8476'
    )
  method = launcher(os.environ) if missing else 'deactivate'
  if method is None:
    return
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  # With no method JAX finds TPU pods by itself, in whichever cloud they are.
  chosen = None if method == 'tpu' else method
  try:
    jax.distributed.initialize(
      coordinator, num_processes, process_id, cluster_detection_method=chosen, initialization_timeout=_CONNECT_SECONDS
    )
  except (RuntimeError, ValueError, OSError, ImportError) as error:
    raise ConnectionError(
      f'the processes of this run ({method if missing else coordinator}) did not come together: {error}. Give each '
      '--coordinator=HOST:PORT --num_processes=N --process_id=I; or --num_processes=1 to run alone'
    ) from error
  sys.excepthook = _ending(sys.excepthook)


def _ending(show):
  """An excepthook that ends the process: a regular end would wait five minutes for the others."""

  def hook(*error):
    show(*error)
    _end(1)

  return hook


def launcher(environment: Mapping[str, str], sys_devices: str = '/sys/bus/pci/devices') -> str | None:
  """Which launcher started this process as one of several: slurm, ompi, k8s or tpu; None: it is alone.

  Args:
    environment: of the process.
    sys_devices: where the system lists PCI devices; those of a TPU host may belong to a pod.
  """
  if all(name in environment for name in _SLURM):
    return 'slurm' if int(environment['SLURM_NTASKS']) > 1 else None
  if 'OMPI_COMM_WORLD_SIZE' in environment:
    return 'ompi' if int(environment['OMPI_COMM_WORLD_SIZE']) > 1 else None
  if environment.get('JAX_PLATFORMS', '') not in ('cpu', 'cuda') and _has_tpu(sys_devices):
    return 'tpu'
  # An indexed job, those of a JobSet among them.
  return 'k8s' if {'KUBERNETES_SERVICE_HOST', 'JOB_COMPLETION_INDEX'} <= environment.keys() else None


def _has_tpu(sys_devices) -> bool:
  if importlib.util.find_spec('libtpu') is None:
    return False
  for vendor in map(pathlib.Path, glob.glob(f'{sys_devices}/*/vendor')):
    if vendor.read_text().strip() == '0x1ae0' and (vendor.parent / 'device').read_text().strip() in _GOOGLE_TPUS:
      return True
  return False


def is_first() -> bool:
  """Whether this process writes what a run writes once: metrics, config, plots, samples."""
  return jax.process_index() == 0


def agree(value: int, what: str) -> None:
  """Waits for all processes.

  Raises:
    ValueError: they do not have the same value.
  """
  if jax.process_count() == 1:
    return
  client, key = _client(), f'meshlm/agree/{next(_numbers)}'
  client.key_value_set(f'{key}/{jax.process_index()}', str(value))
  _wait(key)
  values = {int(path.rpartition('/')[2]): int(text) for path, text in client.key_value_dir_get(key)}
  if len(set(values.values())) > 1:
    raise ValueError(
      f'the processes differ in {what}: {[values[i] for i in sorted(values)]}; all of them must be given the same '
      'command and see the same --workdir'
    )


def together(function: Callable) -> Callable:
  """A jitted function whose first call waits until all processes have compiled it.

  The exchange on CPUs gives up when one process comes half a minute after another, as it does where one finds its
  program in a cache that the other one does not.
  """
  if jax.process_count() == 1:
    return function
  compiled = []

  def call(*args):
    if not compiled:
      compiled.append(function.lower(*args).compile())
      _wait(f'meshlm/compiled/{next(_numbers)}')
    return compiled[0](*args)

  return call


def _wait(name):
  _client().wait_at_barrier(name, 1000 * _BARRIER_SECONDS)


def _client():
  """Of JAX's coordination service, which has no public name; a barrier of devices would be part of the exchange."""
  from jax._src import distributed

  return distributed.global_state.client


def local_rows(shardings: Mapping[str, NamedSharding], rows: int) -> np.ndarray:
  """The rows of a batch that this process's devices hold: increasing int64 indices below `rows`.

  Args:
    shardings: of the arrays of a batch, the rows along their first dimension.
    rows: of the whole batch.

  Raises:
    ValueError: the arrays have different rows, or this process has none of the mesh's devices.
  """
  found = {tuple(_local_rows(sharding, rows)) for sharding in shardings.values()}
  if len(found) != 1:
    raise ValueError(f'the arrays of a batch are split differently along their rows: {dict(shardings)}')
  own = np.array(found.pop(), np.int64)
  if not len(own):
    raise ValueError(
      f'the mesh uses no device of process {jax.process_index()}: of {jax.device_count()} devices it has too few; '
      'give the mesh all of them, for example by mesh.data=-1, or start fewer processes'
    )
  return own


def _local_rows(sharding, rows):
  spec = PartitionSpec(*sharding.spec[:1])
  held = NamedSharding(sharding.mesh, spec).addressable_devices_indices_map((rows,)).values()
  return sorted({row for (part,) in held for row in range(*part.indices(rows))})


def global_batch(batch: Mapping, shardings: Mapping[str, NamedSharding], rows: int) -> dict[str, jax.Array]:
  """A batch over all devices, of the rows `local_rows` that each process has.

  Args:
    batch: numpy arrays [local rows, ...].
    shardings: of the whole arrays.
    rows: of the whole batch.

  Raises:
    ValueError: the devices cannot share the length of an array.
  """
  for name, values in batch.items():
    _check_even(name, (rows, *values.shape[1:]), shardings[name])
  return {
    name: jax.make_array_from_process_local_data(shardings[name], values, (rows, *values.shape[1:]))
    for name, values in batch.items()
  }


def _check_even(name, shape, sharding):
  for size, entry in zip(shape, sharding.spec):
    axes = (entry,) if isinstance(entry, str) else tuple(entry or ())
    parts = math.prod(sharding.mesh.shape[axis] for axis in axes)
    if size % parts:
      given = ' times '.join(f'mesh.{axis}' for axis in axes)
      raise ValueError(
        f'{name!r} of a batch has the shape {shape}, and {given} = {parts} devices cannot share {size}; choose '
        'another data.sequence_length, from which it follows, or a smaller mesh'
      )


def stops(step: int) -> bool:
  """Whether all processes stop after this step because one of them got a SIGTERM; each asks after each step.

  JAX takes the signal, and its coordination service chooses a step that none of them has passed.
  """
  return multihost_utils.reached_preemption_sync_point(step)


def fail(status: int) -> int:
  """Returns the exit status of a process that failed; one of several ends here: a regular end waits for the others."""
  if jax.distributed.is_initialized():
    _end(status)
  return status


def _end(status):
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)


class Watchdog:
  """Context manager that ends this process, in words and with status 1, when the other ones are lost.

  A process that died breaks the exchange at once on a CPU, and elsewhere ends the others by JAX's heartbeats (100 s).
  One that lives but hangs shows only in that nothing goes on: a thread looks for that.

  Args:
    seconds: without a call of `alive`, from its first call on; 0 = no limit. With one process nothing is watched.
    advice: what the user is told besides.
  """

  def __init__(self, seconds: float, advice: str):
    self._seconds, self._advice = seconds, advice
    self._deadline = None
    self._done = threading.Event()
    self._many = jax.process_count() > 1

  def alive(self) -> None:
    """Tells that the run goes on: a step, a batch of an evaluation, a checkpoint."""
    self._deadline = time.monotonic() + self._seconds

  def __enter__(self):
    if self._many and self._seconds:
      threading.Thread(target=self._watch, name='watchdog', daemon=True).start()
    return self

  def __exit__(self, kind, error, traceback):
    self._done.set()
    if self._many and isinstance(error, jax.errors.JaxRuntimeError):
      self._give_up(f'the exchange with the other processes broke: {str(error).splitlines()[0][:300]}')

  def _watch(self):
    while not self._done.wait(min(1.0, self._seconds / 4)):
      if self._deadline is not None and time.monotonic() > self._deadline:
        self._give_up(f'nothing went on for {self._seconds:g} s (train.step_timeout): another process died or hangs')

  def _give_up(self, why):
    who = f'process {jax.process_index()} of {jax.process_count()}'
    print(f'error: {who} ends: {why}. {self._advice}', file=sys.stderr)
    _end(1)
