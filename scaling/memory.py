"""Bytes that training holds, by published formulas. `planning` counts the bytes of a config itself."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class ModelStates:
  """Bytes a device holds of the model, whatever the batch."""

  parameters: float
  gradients: float
  optimizer: float

  @property
  def total(self) -> float:
    return self.parameters + self.gradients + self.optimizer


@dataclasses.dataclass(frozen=True)
class Widths:
  """Bytes a parameter takes.

  Attributes:
    parameters: of the copy that is multiplied.
    gradients: of its gradient.
    optimizer: of what the optimizer keeps, a copy in higher precision among it.
  """

  parameters: float
  gradients: float
  optimizer: float


FLOAT32_ADAM = Widths(4, 4, 8)  # what this project keeps: float32 throughout, two moments
MIXED_ADAM = Widths(2, 2, 12)  # Rajbhandari et al. 2020, section 3.1: float16, with a float32 copy and two moments


def model_states(num_params: float, zero_stage: int, shards: int, widths: Widths = FLOAT32_ADAM) -> ModelStates:
  """Bytes of a device at a ZeRO stage (Rajbhandari et al. 2020, figure 1).

  Args:
    num_params: of the model, or of the part that a device has by other parallelism.
    zero_stage: 0: everything is whole on each device; from 1 on the optimizer's state is split over the shards, from 2
      on gradients too, at 3 parameters.
    shards: devices that the data is split over.
    widths: bytes of each kind.
  """
  split = lambda stage: shards if zero_stage >= stage else 1
  return ModelStates(
    num_params * widths.parameters / split(3),
    num_params * widths.gradients / split(2),
    num_params * widths.optimizer / split(1),
  )


def common_rule(num_params: float) -> tuple[float, float]:
  """Bytes of a model in float32 training by the common rule: 4 a parameter, and 20 more to train it.

  They are 8 of Adam's moments, 4 of gradients, and 8 for activations and temporary arrays
  (https://huggingface.co/docs/transformers/v4.20.1/en/perf_train_gpu_one#anatomy-of-models-memory).
  """
  states = model_states(num_params, 0, 1)
  return states.parameters, states.gradients + states.optimizer + 8.0 * num_params


def activation_bytes_per_layer(
  length: int,
  rows: int,
  embed_dim: int,
  num_heads: int,
  *,
  tensor: int = 1,
  sequence_parallel: bool = False,
  recompute: str = 'none',
) -> float:
  """Bytes that a layer keeps for the backward pass (Korthikanti et al. 2022, table 2), in 16 bits, attention written
  out, dropout, and a feed-forward of 4 times the width.

  Args:
    length, rows, embed_dim, num_heads: the paper's s, b, h and a.
    tensor: devices that share a layer, t.
    sequence_parallel: whether norms, dropout and residual additions are split over them as well.
    recompute: 'none'; 'selective': what lies between queries and attention's output; 'full': all but the input.
  """
  if recompute not in ('none', 'selective', 'full'):
    raise ValueError(f"recompute={recompute!r} does not exist; use 'none', 'selective' or 'full'")
  size = length * rows * embed_dim
  if recompute == 'full':
    return size * 2 / (tensor if sequence_parallel else 1)
  attention = 5 * num_heads * length / embed_dim if recompute == 'none' else 0
  shared, split = (0, 34) if sequence_parallel else (10, 24)
  return size * (shared + (split + attention) / tensor)
