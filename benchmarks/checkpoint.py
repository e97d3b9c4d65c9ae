"""Saving and restoring checkpoints against the disk: a plain write with fsync and a plain read of the same bytes.

  python -m benchmarks.checkpoint [--mebibytes=1024] [--rounds=3] [--directory=DIR]

The state looks like that of a decoder: parameters and two moments, stacked over layers, over one device and over eight
simulated ones. Files are taken out of the page cache before they are read (cold), or left there (warm). Each figure is
the median of the rounds, in which all are measured in turn.
"""

import argparse
import os
import pathlib
import shutil
import statistics
import tempfile
import time

# Before JAX looks for its devices.
os.environ['XLA_FLAGS'] = os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from benchmarks import common
from training import arrays, checkpoints

_PIECE = 64 * 2**20
_HEADERS = [
  'devices',
  'MiB',
  'save, blocking s',
  'save MB/s',
  'write + fsync MB/s',
  'share',
  'restore MB/s, cold',
  'read MB/s, cold',
  'share',
  'restore MB/s, warm',
  'read MB/s, warm',
]


def make_state(mebibytes: int, devices: int):
  """Parameters and moments of about so many bytes in float32, sharded over the devices, and their abstract tree."""
  layers, width = 8, 1024
  rows = mebibytes * 2**20 // (3 * layers * 4 * width * 4) // 8 * 8
  mesh = jax.make_mesh((devices,), ('fsdp',), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
  sharding = NamedSharding(mesh, PartitionSpec(None, 'fsdp'))
  make = jax.jit(lambda key: jax.random.normal(key, (layers, rows, width)), out_shardings=sharding)
  leaves = {
    f'{part}/layers/{i}': make(jax.random.key(3 * i + j))
    for i in range(4)
    for j, part in enumerate(('params', 'first', 'second'))
  }
  return leaves, {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding) for name, x in leaves.items()}


def evict(directory: pathlib.Path) -> None:
  """Takes the files below a directory out of the page cache."""
  os.sync()
  for file in directory.rglob('*'):
    if file.is_file():
      with open(file, 'rb') as opened:
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def timed(function) -> float:
  start = time.perf_counter()
  function()
  return time.perf_counter() - start


def plain_write(path: pathlib.Path, values: list[np.ndarray]) -> None:
  with open(path, 'wb') as file:
    for array in values:
      file.write(array.data)
    file.flush()
    os.fsync(file.fileno())


def plain_read(path: pathlib.Path) -> None:
  buffer = bytearray(_PIECE)
  with open(path, 'rb', buffering=0) as file:
    while file.readinto(buffer):
      pass


def one_round(directory: pathlib.Path, state, abstract, values) -> dict[str, float]:
  """Seconds of each way, on an empty directory."""
  seconds, plain, saved = {}, directory / 'plain', directory / 'saved'
  seconds['write'] = timed(lambda: plain_write(plain, values))
  with checkpoints.Checkpoints(saved) as found:
    start = time.perf_counter()
    seconds['blocking'] = timed(lambda: found.save(1, state, {}))
    found.wait()
    seconds['save'] = time.perf_counter() - start
    restore = lambda: jax.block_until_ready(found.restore(1, abstract))
    for kind in ('cold', 'warm'):
      if kind == 'cold':
        evict(directory)
      seconds[f'read {kind}'] = timed(lambda: plain_read(plain))
      seconds[f'restore {kind}'] = timed(restore)
  shutil.rmtree(saved)
  plain.unlink()
  return seconds


def measure(directory: pathlib.Path, mebibytes: int, devices: int, rounds: int) -> dict:
  """Medians in seconds and MB/s of one layout."""
  state, abstract = make_state(mebibytes, devices)
  values = [np.asarray(leaf) for leaf in state.values()]
  size = sum(array.nbytes for array in values)
  measured = [one_round(directory, state, abstract, values) for _ in range(rounds)]
  seconds = {key: statistics.median(result[key] for result in measured) for key in measured[0]}
  checksums = timed(lambda: [arrays.checksum(array) for array in values])
  return {
    'devices': devices,
    'bytes': size,
    'seconds': seconds,
    'rounds': measured,
    'megabytes_per_second': {key: size / 1e6 / value for key, value in seconds.items()},
    'checksum_megabytes_per_second': size / 1e6 / checksums,
  }


def row(result: dict) -> list:
  speed = result['megabytes_per_second']
  return [
    result['devices'],
    result['bytes'] / 2**20,
    result['seconds']['blocking'],
    speed['save'],
    speed['write'],
    speed['save'] / speed['write'],
    speed['restore cold'],
    speed['read cold'],
    speed['restore cold'] / speed['read cold'],
    speed['restore warm'],
    speed['read warm'],
  ]


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--mebibytes', type=int, default=1024, help='of the state (default 1024)')
  parser.add_argument('--rounds', type=int, default=3)
  parser.add_argument(
    '--directory', type=pathlib.Path, help="on the disk to measure; default: the system's for temporary files"
  )
  args = parser.parse_args()
  common.warn_if_busy()
  load = os.getloadavg()[0]
  jax.block_until_ready(jnp.zeros(()))
  with tempfile.TemporaryDirectory(dir=args.directory) as directory:
    # The first save and restore of a process import Orbax and tensorstore.
    one_round(pathlib.Path(directory), *(warm := make_state(16, 8)), [np.asarray(leaf) for leaf in warm[0].values()])
    results = [measure(pathlib.Path(directory), args.mebibytes, devices, args.rounds) for devices in (1, 8)]
  table = common.markdown_table(_HEADERS, [row(result) for result in results])
  speed = statistics.median(result['checksum_megabytes_per_second'] for result in results)
  table += f'\n\nOne core computes CRC-32 at {speed:,.0f} MB/s. Load of the machine at the start: {load:.1f}.'
  command = f'python -m benchmarks.checkpoint --mebibytes={args.mebibytes} --rounds={args.rounds}'
  common.write('checkpoint', {'load': load, 'layouts': results}, table, command)


if __name__ == '__main__':
  main()
