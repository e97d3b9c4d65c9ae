"""Golden models of transformers as directories, opened as convert.py opens them."""

import json
import pathlib

import numpy as np
import safetensors.numpy

import interop

FOLDER = pathlib.Path(__file__).parents[1] / 'golden/families'
NAMES = sorted(file.stem for file in FOLDER.glob('*.npz'))


def load(name: str):
  return np.load(FOLDER / f'{name}.npz')


def arrays(golden, kind: str) -> dict[str, np.ndarray]:
  """The `weights` or `gradients` of a golden file by the original's names."""
  return {key.removeprefix(f'{kind}/'): golden[key] for key in golden.files if key.startswith(f'{kind}/')}


def write(name: str, directory: pathlib.Path, change=None, **fields) -> pathlib.Path:
  """Makes the directory that transformers would write; `change(tensors)` and config `fields` alter it."""
  golden = load(name)
  directory.mkdir(parents=True, exist_ok=True)
  tensors = arrays(golden, 'weights')
  safetensors.numpy.save_file(change(tensors) if change else tensors, directory / 'model.safetensors')
  (directory / 'config.json').write_text(json.dumps(json.loads(str(golden['config'])) | fields))
  return directory


def pretrained(name: str, directory: pathlib.Path) -> interop.Pretrained:
  return interop.read(write(name, directory))
