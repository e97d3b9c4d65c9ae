"""How Orbax writes the shards of a state, with a checksum of each; imported with the first save, since that takes half
a second.

Each process writes the shards of its own devices: of several copies the one that JAX numbers 0. It keeps their
checksums in a file of its own, so that nothing has to be gathered.
"""

import json
import logging
from collections.abc import Mapping

import jax
import numpy as np
import orbax.checkpoint as ocp

from training import arrays as arrays_lib
from training import sealed

_WAIT_SECONDS = 6 * 3600  # for a write, and at its end for those of the other processes

# Orbax logs the tracebacks of its threads, some 200 lines for a full disk, and raises the same error, which is enough.
logging.getLogger('absl').addFilter(lambda record: '/orbax/' not in record.pathname)


class ChecksumHandler(ocp.AsyncCheckpointHandler):
  """The item `checksums` of a checkpoint: a file for each process with the checksums of the shards it wrote."""

  async def async_save(self, directory, args: 'ChecksumSave'):
    """Takes hold of the shards, which Orbax has copied to the host; the rest comes in the background."""
    shards = {
      name: [(_cell_key(shard, leaf), np.asarray(shard.data)) for shard in _written(leaf)]
      for name, leaf in args.leaves.items()
    }
    return [ocp.future.CommitFutureAwaitingContractedSignals(self._write(directory, shards), name='checksums')]

  async def _write(self, directory, shards):
    checksums = {name: {key: arrays_lib.checksum(data) for key, data in own} for name, own in shards.items() if own}
    (directory / f'{jax.process_index()}.json').write_text(json.dumps(sealed.seal(checksums)))

  def save(self, directory, args):
    """Not used: only an AsyncCheckpointer saves."""
    raise NotImplementedError

  def restore(self, directory, args=None):
    """Not used: `read_checksums` reads them."""
    raise NotImplementedError


@ocp.args.register_with_handler(ChecksumHandler, for_save=True, for_restore=True)
class ChecksumSave(ocp.args.CheckpointArgs):
  """The arrays, by name."""

  def __init__(self, leaves: Mapping[str, jax.Array]):
    self.leaves = leaves


def checkpointer() -> ocp.AsyncCheckpointer:
  """Writes the items `state`, `metadata` and `checksums` in the background; the rename comes when all is written."""
  # Compression makes float32 weights 8 % smaller and writing 3 times slower, on cores that training needs.
  state = ocp.PyTreeCheckpointHandler(
    use_compression=False,
    enable_pinned_host_transfer=False,  # a second copy on the host
    type_handler_registry=ocp.type_handlers.create_type_handler_registry(
      (jax.Array, ocp.type_handlers.ArrayHandler(use_replica_parallel=False))  # as `_written`
    ),
  )
  return ocp.AsyncCheckpointer(
    ocp.CompositeCheckpointHandler(state=state, metadata=ocp.JsonCheckpointHandler(), checksums=ChecksumHandler()),
    # Directories are made before anything else, so that a full disk or a wrong path is told at once.
    async_options=ocp.options.AsyncOptions(timeout_secs=_WAIT_SECONDS, create_directories_asynchronously=False),
  )


def arguments(leaves: Mapping[str, jax.Array], record: dict) -> ocp.args.Composite:
  """What the checkpointer is to save."""
  return ocp.args.Composite(
    state=ocp.args.PyTreeSave(dict(leaves)),
    metadata=ocp.args.JsonSave(sealed.seal(record)),
    checksums=ChecksumSave(leaves),
  )


def snapshot(leaf) -> jax.Array:
  """The leaf for `arguments`, so that its buffers may be donated as soon as it is saved.

  Orbax copies what lies on an accelerator to the host. The memory of a CPU it would share, which prevents donation.
  """
  array = leaf if isinstance(leaf, jax.Array) else jax.device_put(leaf)
  if array.dtype != leaf.dtype:
    raise TypeError(f'JAX makes {array.dtype} of {leaf.dtype}; save {array.dtype}')
  on_host = next(iter(array.sharding.device_set)).platform == 'cpu'
  return jax.device_put(array, array.sharding, may_alias=False) if on_host else array


def _written(leaf: jax.Array) -> list:
  """The shards of an array that this process writes."""
  return [shard for shard in leaf.addressable_shards if shard.replica_id == 0]


def _cell_key(shard, leaf: jax.Array) -> str:
  starts = [start for start, _ in arrays_lib.box(shard.index, leaf.shape)]
  sizes = leaf.sharding.shard_shape(leaf.shape)
  return arrays_lib.cell_key(start // max(1, size) for start, size in zip(starts, sizes))
