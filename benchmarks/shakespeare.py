"""Character-level Shakespeare within nanoGPT's CPU budget: validation loss and wall time, against PyTorch.

  python -m benchmarks.shakespeare --torch-python=PATH [--data=../shared/data/tinyshakespeare/input.txt]

PyTorch runs nanoGPT's published 2000 steps, this project configs/shakespeare.py. Both train on the first 90 % of the
text and are scored on all of the last 10 %, in windows of 64 characters. The wall time is that of the training process
from its start to its end, compilation included, nothing cached before.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

from benchmarks import common

TORCH_MODES = ('float32-eager', 'float32-compile', 'bfloat16-eager', 'bfloat16-compile')


def run(command: list[str], environment: dict) -> tuple[float, str]:
  """Wall seconds and output of a process that must succeed."""
  start = time.perf_counter()
  done = subprocess.run(
    command, cwd=common.ROOT, env=common.ENVIRONMENT | environment, stdout=subprocess.PIPE, text=True, check=True
  )
  return time.perf_counter() - start, done.stdout


def train_meshlm(folder: pathlib.Path) -> dict:
  workdir, scores = folder / 'run', folder / 'scores.json'
  caches = {'XDG_CACHE_HOME': str(folder / 'cache')}
  wall, _ = run(
    [
      sys.executable,
      'train.py',
      '--config=configs/shakespeare.py',
      f'--workdir={workdir}',
      f'--config.data.path={folder / "train.txt"}',
    ],
    caches,
  )
  run(
    [sys.executable, 'evaluate.py', f'--workdir={workdir}', f'--data={folder / "validation.txt"}', f'--json={scores}'],
    caches,
  )
  summary = json.loads((workdir / 'summary.json').read_text())
  return {
    'wall_seconds': wall,
    'training_seconds': summary['seconds'],
    'parameters': summary['params'],
    'validation_loss': json.loads(scores.read_text())['loss'],
  }


def train_torch(python: str, folder: pathlib.Path, mode: str) -> dict:
  caches = {'TORCHINDUCTOR_CACHE_DIR': str(folder / f'inductor-{mode}')}
  wall, output = run(
    [python, 'benchmarks/torch/shakespeare.py', str(folder / 'train.txt'), str(folder / 'validation.txt'), mode], caches
  )
  return {'wall_seconds': wall, **json.loads(output)}


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  common.add_torch_python(parser)
  parser.add_argument(
    '--data', type=pathlib.Path, default=common.ROOT.parent / 'shared/data/tinyshakespeare/input.txt', help='the text'
  )
  parser.add_argument('--modes', nargs='+', choices=TORCH_MODES, default=TORCH_MODES, help="PyTorch's")
  arguments = parser.parse_args()
  torch_python = common.require_torch_python(parser, arguments.torch_python)
  if not arguments.data.exists():
    parser.error(f'{arguments.data} does not exist; --data=PATH names the text, input.txt of karpathy/char-rnn')
  common.warn_if_busy()
  text = arguments.data.read_text()
  cut = int(0.9 * len(text))
  with tempfile.TemporaryDirectory(prefix='meshlm-shakespeare-') as name:
    folder = pathlib.Path(name)
    (folder / 'train.txt').write_text(text[:cut])
    (folder / 'validation.txt').write_text(text[cut:])
    results = {'meshlm': train_meshlm(folder)}
    results |= {f'PyTorch {mode}': train_torch(torch_python, folder, mode) for mode in arguments.modes}
  table = common.markdown_table(
    ['', 'validation loss', 'wall seconds', 'of them training', 'parameters'],
    [
      [name, f'{r["validation_loss"]:.3f}', r['wall_seconds'], r['training_seconds'], f'{r["parameters"]:,}']
      for name, r in results.items()
    ],
  )
  common.write(
    'shakespeare',
    {'runs': results},
    table,
    f'python -m benchmarks.shakespeare --data={os.path.relpath(arguments.data, common.ROOT)}',
  )


if __name__ == '__main__':
  main()
