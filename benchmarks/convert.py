"""Memory and time of convert.py on a sharded checkpoint of random bfloat16 weights, both ways.

  python -m benchmarks.convert [--gigabytes=4] [--shard_gigabytes=0.5] [--folder=DIR]

The limit is three times the largest tensor and 500 MB, above what an interpreter takes that does nothing. Needs about
five times the size on disk: bfloat16 there and back, float32 in between.
"""

import argparse
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

import numpy as np

from benchmarks import common
from interop import files, reading, rules
from interop.families import FAMILIES

_FAMILY = FAMILIES['llama']
_ALLOWED = 500e6


def describe(gigabytes: float) -> dict:
  """The config.json of a Llama of that size in bfloat16; a twentieth of it is the embedding."""
  embed_dim = 128 * max(2, round((gigabytes * 1e9 / 2 / 32 / 14.5) ** 0.5 / 128))
  return {
    'architectures': ['LlamaForCausalLM'],
    'model_type': 'llama',
    'vocab_size': 16 * max(4, round(gigabytes * 1e9 / 2 / 20 / embed_dim / 16)),
    'hidden_size': embed_dim,
    'intermediate_size': 4 * embed_dim - 512 if embed_dim > 512 else 2 * embed_dim,
    'num_hidden_layers': 32,
    'num_attention_heads': embed_dim // 64,
    'num_key_value_heads': embed_dim // 128,
    'tie_word_embeddings': True,
    'eos_token_id': 2,
    'dtype': 'bfloat16',
  }


def make(directory: pathlib.Path, gigabytes: float, shard_gigabytes: float) -> tuple[float, float]:
  """Writes the checkpoint; returns the bytes of all tensors and of the largest."""
  described = describe(gigabytes)
  directory.mkdir()
  (directory / 'config.json').write_text(json.dumps(described))
  shapes = reading.parameter_shapes(reading.to_config(_FAMILY, described, ()).model)
  dtype = files.DTYPES['BF16']
  specs = {name: (dtype, place.shape) for name, place in rules.places(_FAMILY.rules, shapes).items()}
  rng = np.random.default_rng(0)
  # Any bits that are finite: the highest bit of the exponent is 0.
  random = lambda shape: (rng.integers(2**16, size=shape, dtype=np.uint16) & np.uint16(0xBFFF)).view(dtype)
  arrays = ((name, random(shape)) for name, (_, shape) in specs.items())
  files.write(directory, specs, arrays, int(shard_gigabytes * 1e9))
  sizes = [2 * int(np.prod(shape)) for _, shape in specs.values()]
  return sum(sizes), max(sizes)


def measured(*command: str) -> tuple[float, float]:
  """Seconds and peak resident bytes of a Python process."""
  code = (
    'import resource, subprocess, sys; subprocess.run([sys.executable, *sys.argv[1:]], check=True); '
    'print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)'
  )
  start = time.perf_counter()
  result = subprocess.run([sys.executable, '-c', code, *command], cwd=common.ROOT, stdout=subprocess.PIPE, text=True)
  if result.returncode:
    raise RuntimeError(f'{" ".join(command)} ended with status {result.returncode}')
  return time.perf_counter() - start, 1024 * int(result.stdout.splitlines()[-1])


def same(first: pathlib.Path, second: pathlib.Path) -> bool:
  """Whether two directories hold the same tensors, bit for bit."""
  one, other = files.tensors(first), files.tensors(second)
  return one.keys() == other.keys() and all(
    np.array_equal(one[name].read().view(np.uint16), other[name].read().view(np.uint16)) for name in one
  )


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--gigabytes', type=float, default=4.0, help='of the checkpoint (default 4)')
  parser.add_argument('--shard_gigabytes', type=float, default=0.5, help='of a file of it (default 0.5)')
  parser.add_argument('--folder', help='where to write; default the system folder for temporary files')
  arguments = parser.parse_args()
  folder = pathlib.Path(tempfile.mkdtemp(prefix='meshlm-convert-', dir=arguments.folder))
  try:
    source, run, back = (folder / name for name in ('source', 'run', 'back'))
    size, largest = make(source, arguments.gigabytes, arguments.shard_gigabytes)
    _, idle = measured('-c', 'pass')
    limit = 3 * largest + _ALLOWED
    ways = {
      'from_hf': measured('convert.py', f'--from_hf={source}', f'--workdir={run}'),
      'to_hf': measured('convert.py', f'--workdir={run}', f'--to_hf={back}'),
    }
    equal = same(source, back)
  finally:
    shutil.rmtree(folder)
  results = {
    'bytes': size,
    'largest_tensor': largest,
    'limit_bytes': limit,
    'same_bits': equal,
    'ways': {name: {'seconds': seconds, 'peak_bytes': peak - idle} for name, (seconds, peak) in ways.items()},
  }
  rows = [
    [f'--{name}', way['seconds'], way['peak_bytes'] / 1e6, limit / 1e6, 'yes' if way['peak_bytes'] < limit else 'NO']
    for name, way in results['ways'].items()
  ]
  table = common.markdown_table(['way', 'seconds', 'peak MB above an idle interpreter', 'limit MB', 'within'], rows)
  words = f'{size / 1e9:.2f} GB in bfloat16, largest tensor {largest / 1e6:.0f} MB'
  table = f'{words}; back with the same bits: {"yes" if equal else "NO"}\n\n{table}'
  command = f'python -m benchmarks.convert --gigabytes={arguments.gigabytes:g}'
  common.write('convert', results, table, command)


if __name__ == '__main__':
  main()
