"""Checkpoints that are whole or not there: written by Orbax in the background, verified by checksum on restore.

A checkpoint is the directory `<directory>/<step>/`. Orbax writes it under a temporary name and renames it, so a
process killed at any moment leaves either all of it or none. Arrays are stored as a flat dict of leaf paths, so
that any mesh, any sharding and any subset of the leaves can be restored. Each process writes the shards of its
devices and reads what its devices need; no array is ever gathered. Orbax does not notice a flipped bit in array data:
a CRC-32 of every stored shard (`checksums/`), and of the metadata itself, is stored beside them. In checkpoints of
before there is one of every array, in the metadata.

With several processes every one of them calls every method that writes, and the directory is one that all of them see.
"""

import concurrent.futures
import functools
import json
import math
import pathlib
import shutil
from collections.abc import Iterable, Mapping

import jax
import numpy as np

from training import arrays as arrays_lib
from training import params as params_lib
from training import sealed


class CheckpointError(RuntimeError):
  """A checkpoint cannot be written, is damaged, or does not fit what it is restored into."""


class Checkpoints:
  """The checkpoints of one run; also a context manager that closes itself.

  Args:
    directory: holds one directory a step; made with the first save.
    keep_last: number of newest checkpoints kept, besides the one with the lowest metric. At least 1.
  """

  def __init__(self, directory, keep_last: int = 2):
    if keep_last < 1:
      raise ValueError(f'keep_last is {keep_last}; at least 1 checkpoint must be kept to resume from')
    self.directory = pathlib.Path(directory).absolute()
    self._keep_last = keep_last
    self._orbax = None
    self._writer = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix='checkpoint')
    self._writing = None

  def save(self, step: int, state, metadata: dict, metric: float | None = None):
    """Copies the state's shards to the host, then writes them in the background; a step already there is left alone.

    When this returns, the state's buffers may be donated. At most one write runs: a second call waits for the
    first. Call `wait` or `close` before the process ends, or the last checkpoint is lost.

    Args:
      step: number of finished steps.
      state: pytree of arrays, typed PRNG keys among them.
      metadata: JSON-able, read before this returns; `restore` returns it (tuples as lists).
      metric: validation loss at this step, if known; the checkpoint with the lowest is kept.

    Raises:
      CheckpointError: it cannot be written, or an earlier write failed (a full disk shows here, or at `wait`).
      TypeError: the metadata is not JSON-able, or an array has a dtype that JAX does not have.
    """
    from training import shards

    self.wait()
    if self._whole(step):
      return
    metadata = json.loads(json.dumps(metadata))
    leaves = {name: shards.snapshot(_raw(leaf)) for name, leaf in params_lib.leaf_paths(state).items()}
    record = {
      'metadata': metadata,
      'metric': math.nan if metric is None else float(metric),
      'arrays': {name: _spec(leaf) | {'cell': leaf.sharding.shard_shape(leaf.shape)} for name, leaf in leaves.items()},
      'processes': jax.process_count(),
    }
    self._orbax = self._orbax or shards.checkpointer()
    try:
      self._remove_leftovers()
      self._orbax.save(self._path(step), force=True, args=shards.arguments(leaves, record))
    except Exception as error:
      raise self._not_written(step, error) from error
    self._writing = self._writer.submit(self._finish, step)

  def save_parts(self, step: int, shapes: Mapping, parts: Iterable, metadata: dict) -> None:
    """Writes a checkpoint of float32 arrays as their parts come, with little memory, and waits for it.

    Args:
      step: number of finished steps.
      shapes: of the leaves by path, such as 'params/embedding/table'.
      parts: (path, leading index, array), see `arrays.write_parts`.
      metadata: JSON-able; `restore` returns it.

    Raises:
      CheckpointError: there is a checkpoint of this step already.
    """
    if self._whole(step):
      raise CheckpointError(f'{self._path(step)} is there already; name another directory')
    unfinished = self._path(step).with_suffix('.parts')
    self._remove_leftovers()
    try:
      for item in ('state', 'metadata', 'checksums'):
        (unfinished / item).mkdir(parents=True)
      stored = arrays_lib.write_parts(unfinished / 'state', shapes, parts)
      record = {
        'metadata': json.loads(json.dumps(metadata)),
        'metric': math.nan,
        'arrays': {
          name: {'dtype': spec.dtype, 'shape': spec.shape, 'cell': spec.cell} for name, spec in stored.items()
        },
        'processes': 1,
      }
      checksums = {name: spec.checksums for name, spec in stored.items()}
      (unfinished / 'checksums' / '0.json').write_text(json.dumps(sealed.seal(checksums)))
      (unfinished / 'metadata' / 'metadata').write_text(json.dumps(sealed.seal(record)))
      unfinished.rename(self._path(step))
    finally:
      shutil.rmtree(unfinished, ignore_errors=True)

  def open_arrays(self, step: int) -> arrays_lib.StoredArrays:
    """The arrays of a checkpoint by the paths of the leaves, to be read in parts.

    Raises:
      CheckpointError: the checkpoint is absent or damaged.
    """
    return self._open(step, self._read_record(step))

  def wait(self):
    """Waits until the last save is on disk; raises CheckpointError if it failed."""
    if self._writing is not None:
      writing, self._writing = self._writing, None
      writing.result()

  def close(self):
    """Waits as `wait` does and ends the background threads."""
    try:
      self.wait()
    finally:
      self._writer.shutdown()
      if self._orbax is not None:
        self._orbax.close()

  def __enter__(self):
    return self

  def __exit__(self, *exception):
    self.close()

  def steps(self) -> list[int]:
    """Steps with a whole checkpoint, in increasing order; empty and half-deleted directories do not count."""
    if not self.directory.is_dir():
      return []
    return sorted(
      int(path.name) for path in self.directory.iterdir() if path.name.isdecimal() and self._whole(int(path.name))
    )

  def latest_step(self) -> int | None:
    """The newest whole checkpoint, or None."""
    return max(self.steps(), default=None)

  def best_step(self) -> int | None:
    """The checkpoint with the lowest finite metric (the newest of equals), or None if none has a metric."""
    metrics = {step: self._metric(step) for step in self.steps()}
    finite = [step for step, metric in metrics.items() if math.isfinite(metric)]
    return min(finite, key=lambda step: (metrics[step], -step), default=None)

  def restore(self, step: int, abstract_state):
    """Reads and verifies one checkpoint.

    Args:
      step: one of `steps()`.
      abstract_state: pytree of arrays or `jax.ShapeDtypeStruct` with the structure, shapes, dtypes and shardings
        wanted; the shardings need not be those of the saving run. Without a sharding: the default device.

    Returns:
      (state with `abstract_state`'s structure, the metadata given to `save`).

    Raises:
      CheckpointError: the checkpoint is absent or damaged, or a leaf is missing, is left over, or differs in
        shape or dtype. Nothing is cast.
    """
    record = self._read_record(step)
    wanted = params_lib.leaf_paths(abstract_state)
    self._check_fit(step, record['arrays'], {name: _spec(_raw(leaf)) for name, leaf in wanted.items()})
    arrays = arrays_lib.restore(self._open(step, record), {name: leaf.sharding for name, leaf in wanted.items()})
    leaves = [_typed(arrays[name], leaf) for name, leaf in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(abstract_state), leaves), record['metadata']

  def restore_fields(self, step: int, fields: tuple[str, ...] = ('params',)):
    """Reads and verifies parts of one checkpoint without knowing the state's structure, as for inference.

    Args:
      step: one of `steps()`.
      fields: top-level fields of the saved state that hold nested dicts; those it does not have are left out.

    Returns:
      ({field: nested dict of numpy arrays}, the metadata given to `save`).

    Raises:
      CheckpointError: the checkpoint is absent or damaged.
    """
    record = self._read_record(step)
    arrays, tree = self._open(step, record), {}
    for name in arrays.stored:
      if name.split('/')[0] not in fields:
        continue
      *parents, last = name.split('/')
      node = tree
      for parent in parents:
        node = node.setdefault(parent, {})
      node[last] = arrays.read(name, (), None)
    return tree, record['metadata']

  def _path(self, step):
    return self.directory / str(step)

  def _whole(self, step):
    # The layout of Orbax's composite checkpoints; both are there from the moment of the rename.
    return (self._path(step) / 'metadata' / 'metadata').is_file() and (self._path(step) / 'state').is_dir()

  def _finish(self, step):
    """In the background: waits for Orbax, then removes what is not kept."""
    try:
      self._orbax.wait_until_finished()
      if jax.process_index() == 0:
        self._remove_old()
    except Exception as error:
      raise self._not_written(step, error) from error

  def _not_written(self, step, error):
    latest = self.latest_step()
    kept = f'step {latest} is the last one written' if latest is not None else 'none is written so far'
    shared = '; all processes must see the same directory' if jax.process_count() > 1 else ''
    return CheckpointError(
      f'could not write checkpoint {self._path(step)}: {error}. Of this run, {kept}; '
      f'make room or repair the disk and start the same command again{shared}'
    )

  def _remove_leftovers(self):
    if jax.process_index():
      return
    for pattern in ('*.orbax-checkpoint-tmp*', '*.deleted', '*.parts'):
      for path in self.directory.glob(pattern):
        shutil.rmtree(path)

  def _remove_old(self):
    kept = {*self.steps()[-self._keep_last :], self.best_step()}
    for step in self.steps():
      if step not in kept:
        # Renamed first: a process killed while deleting must not leave half a checkpoint under its name.
        shutil.rmtree(self._path(step).rename(self._path(step).with_suffix('.deleted')))

  def _read_record(self, step):
    if not self._whole(step):
      steps = ', '.join(map(str, self.steps())) or 'none'
      raise CheckpointError(f'{self.directory} has no checkpoint of step {step}; it has: {steps}')
    return self._read_sealed(step, 'its metadata', 'metadata/metadata')

  def _read_sealed(self, step, what, file):
    try:
      return sealed.unseal((self._path(step) / file).read_text())
    except (OSError, ValueError) as error:
      raise self._damaged(step, f'{what} {error}') from error

  def _metric(self, step):
    try:
      return self._read_record(step)['metric']
    except CheckpointError:  # an old checkpoint that is damaged must not stop the run that goes on writing new ones
      return math.nan

  def _open(self, step, record) -> arrays_lib.StoredArrays:
    checksums = {}
    for process in range(record.get('processes', 0)):
      file = f'checksums/{process}.json'
      for name, own in self._read_sealed(step, f'its {file}', file).items():
        checksums.setdefault(name, {}).update(own)
    stored = {}
    for name, spec in record['arrays'].items():
      shape = tuple(spec['shape'])
      if 'crc32' in spec:  # of before: one checksum of the whole array
        own, cell = {arrays_lib.cell_key([0] * len(shape)): spec['crc32']}, shape
      else:
        own, cell = checksums.get(name, {}), tuple(spec['cell'])
      stored[name] = arrays_lib.Stored(spec['dtype'], shape, cell, own)
    return arrays_lib.StoredArrays(self._path(step) / 'state', stored, functools.partial(self._damaged, step))

  def _damaged(self, step, why):
    earlier = [other for other in self.steps() if other < step]
    go_on = f'go on from step {earlier[-1]}' if earlier else 'start again from step 0'
    return CheckpointError(
      f'checkpoint {self._path(step)} is damaged: {why}. To {go_on}, delete it '
      f'(rm -r {self._path(step)}) and start the same command again'
    )

  def _check_fit(self, step, stored, wanted):
    problems = [f'{name} is in the checkpoint only' for name in stored.keys() - wanted.keys()]
    problems += [f'{name} is not in the checkpoint' for name in wanted.keys() - stored.keys()]
    for name in stored.keys() & wanted.keys():
      saved = {key: stored[name][key] for key in ('dtype', 'shape')}
      if saved != wanted[name]:
        problems.append(f'{name} is {_words(saved)} in the checkpoint, {_words(wanted[name])} here')
    if problems:
      more = f'; and {len(problems) - 5} more' if len(problems) > 5 else ''
      raise CheckpointError(
        f'checkpoint {self._path(step)} does not fit this configuration: '
        f'{"; ".join(sorted(problems)[:5])}{more}. Use the configuration that it was saved with '
        '(config.json in the run directory), or another --workdir'
      )


def _is_key(leaf):
  return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _raw(leaf):
  """The leaf with a typed PRNG key replaced by its integers; works for abstract leaves too."""
  if not _is_key(leaf):
    return leaf
  return jax.random.key_data(leaf) if isinstance(leaf, jax.Array) else jax.eval_shape(jax.random.key_data, leaf)


def _typed(array, leaf):
  """A restored array as a typed key where the abstract leaf is one."""
  return jax.random.wrap_key_data(array, impl=_key_impl(leaf)) if _is_key(leaf) else array


def _key_impl(leaf):
  impls = []  # key_impl refuses a ShapeDtypeStruct but takes a tracer of one
  jax.eval_shape(lambda key: impls.append(jax.random.key_impl(key)), leaf)
  return impls[0]


def _spec(array):
  return {'dtype': np.dtype(array.dtype).name, 'shape': list(array.shape)}


def _words(spec):
  return f'{spec["dtype"]}[{", ".join(map(str, spec["shape"]))}]'
