"""Finished or running runs, read back from their directory."""

import dataclasses
import functools
import json
import pathlib

import jax

import inference
import model as model_lib
import precision
from data import tokenizers
from training import checkpoints as checkpoints_lib
from training import configs
from training import metrics as metrics_lib


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

  @property
  def decoder(self) -> precision.Decoder:
    """The model under the precision that it was trained with, for generation."""
    return precision.Decoder(self.model, precision.policy(self.config.precision))

  @functools.cached_property
  def decoding_params(self) -> dict:
    """The parameters as generation holds them."""
    return inference.prepare(self.decoder, self.params)


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
  path = workdir / 'config.json'
  if not path.is_file():
    raise FileNotFoundError(f'{workdir} holds no run: {path} is missing; give the --workdir of a train.py run')
  config = configs.from_json(json.loads(path.read_text(encoding='utf-8')))
  with checkpoints_lib.Checkpoints(workdir / 'checkpoints') as checkpoints:
    step = checkpoints.latest_step() if step is None else step
    if step is None:
      raise FileNotFoundError(f'{workdir} has no checkpoint yet; train it until the first one (train.checkpoint_every)')
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


def _overlaid(params: dict, average: dict) -> dict:
  """The nested dict with the leaves of another in the place of its own: frozen leaves have no moving average."""
  return {
    key: _overlaid(value, average[key]) if isinstance(value, dict) and key in average else average.get(key, value)
    for key, value in params.items()
  }
