"""Finished or running runs, read back from their directory."""

import dataclasses
import functools
import json
import pathlib

import jax

import model as model_lib
import objectives
import precision
from data import tokenizers
from training import arrays as arrays_lib
from training import checkpoints as checkpoints_lib
from training import configs
from training import metrics as metrics_lib
from training import params as params_lib


@dataclasses.dataclass(frozen=True)
class Run:
  """A run as it was at one checkpoint.

  Attributes:
    config: the resolved config.
    tokenizer: what turns text into tokens and back.
    model: pure functions of the parameters.
    params: the parameters; their moving average where the run kept one.
    step: of the checkpoint.
    metrics: the objects of metrics.jsonl, in order.
    workdir: the run directory.
  """

  config: object
  tokenizer: tokenizers.Tokenizer
  model: object
  params: dict
  step: int
  metrics: list[dict]
  workdir: pathlib.Path

  @functools.cached_property
  def decoder(self) -> precision.Decoder:
    """The model as it generates, under the precision that it was trained with."""
    model = objectives.create(self.config.objective).generator(self.model)
    return precision.Decoder(model, precision.policy(self.config.precision))

  @functools.cached_property
  def decoding_params(self) -> dict:
    """The parameters as generation holds them."""
    return self.decoder.unstacked(self.params, model_lib.Stream.of_one_token())


@dataclasses.dataclass(frozen=True)
class StoredRun:
  """A run at one checkpoint, its parameters still on disk.

  Attributes:
    config: the resolved config.
    tokenizer: what turns text into tokens and back.
    step: of the checkpoint.
    workdir: the run directory.
    paths: of the stored leaf of each parameter, by the parameter's path: of the moving average where there is one.
    arrays: the stored leaves.
  """

  config: object
  tokenizer: tokenizers.Tokenizer
  step: int
  workdir: pathlib.Path
  paths: dict[str, str]
  arrays: arrays_lib.StoredArrays

  def read(self, path: str, index: tuple[int, ...], dtype):
    """One part of a parameter, see `StoredArrays.read`."""
    return self.arrays.read(self.paths[path], index, dtype)

  @property
  def shapes(self) -> dict[str, tuple[int, ...]]:
    """Of the parameters, by path."""
    return {path: self.arrays.stored[name].shape for path, name in self.paths.items()}

  def restore(self, abstract_params):
    """Parameters read straight into shardings.

    Args:
      abstract_params: pytree of ShapeDtypeStructs with shardings, some or all of the parameters.

    Raises:
      CheckpointError: the checkpoint is damaged.
    """
    wanted = {self.paths[path]: leaf.sharding for path, leaf in params_lib.leaf_paths(abstract_params).items()}
    restored = arrays_lib.restore(self.arrays, wanted)
    return jax.tree.unflatten(jax.tree.structure(abstract_params), [restored[name] for name in wanted])


def open_run(directory, step: int | None = None) -> StoredRun:
  """Opens a run directory without reading its parameters; see `load_run`."""
  workdir = pathlib.Path(directory)
  config = _read_config(workdir)
  with checkpoints_lib.Checkpoints(workdir / 'checkpoints') as checkpoints:
    step = _step(checkpoints, step, workdir)
    arrays = checkpoints.open_arrays(step)
  paths = {
    name.removeprefix(f'{field}/'): name
    for field in ('params', 'ema')
    for name in arrays.stored
    if name.startswith(f'{field}/')
  }
  return StoredRun(config, tokenizers.load(workdir / 'tokenizer'), step, workdir, paths, arrays)


def load_run(directory, step: int | None = None) -> Run:
  """Reads a run directory.

  Args:
    directory: what `train.py --workdir` was given.
    step: of the checkpoint wanted; None = the last one.

  Raises:
    FileNotFoundError: the directory holds no run, or no checkpoint yet.
    CheckpointError: the checkpoint does not exist or is damaged.
  """
  workdir = pathlib.Path(directory)
  config = _read_config(workdir)
  with checkpoints_lib.Checkpoints(workdir / 'checkpoints') as checkpoints:
    step = _step(checkpoints, step, workdir)
    fields, _ = checkpoints.restore_fields(step, ('params', 'ema'))
  params = jax.tree.map(jax.numpy.asarray, _overlaid(fields['params'], fields.get('ema', {})))
  return Run(
    config,
    tokenizers.load(workdir / 'tokenizer'),
    model_lib.create(config.model),
    params,
    step,
    metrics_lib.read_metrics(workdir),
    workdir,
  )


def _read_config(workdir):
  path = workdir / 'config.json'
  if not path.is_file():
    raise FileNotFoundError(f'{workdir} holds no run: {path} is missing; give the --workdir of a train.py run')
  return configs.from_json(json.loads(path.read_text(encoding='utf-8')))


def _step(checkpoints, step, workdir):
  step = checkpoints.latest_step() if step is None else step
  if step is None:
    raise FileNotFoundError(f'{workdir} has no checkpoint yet; train it until the first one (train.checkpoint_every)')
  return step


def _overlaid(params: dict, average: dict) -> dict:
  """The nested dict with the leaves of another in the place of its own: frozen leaves have no moving average."""
  return {
    key: _overlaid(value, average[key]) if isinstance(value, dict) and key in average else average.get(key, value)
    for key, value in params.items()
  }
