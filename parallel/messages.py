"""What the devices of a layout say to each other in a step, by arithmetic: kinds, mesh axes and bytes.

What a compiled program really says is read by `parallel.collectives`.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping

from parallel.rules import Layout

_WIDE = 4  # bytes of a gradient and of a stored parameter


@dataclasses.dataclass(frozen=True)
class Step:
  """Sizes of a training step.

  Attributes:
    parameters: whole, by whether they are experts' weights and by whether they stand in a stack of layers:
      {(False, True): number, ...}.
    tokens: of a batch, padding included.
    layers: of all stacks.
    sublayers: residual branches of all layers.
    embed_dim: width of the residual stream.
    kv_dim: width of keys and values together.
    expert_layers: layers with experts.
    experts_per_token: that a token passes.
    microbatches: accumulation steps.
    itemsize: bytes of what flows between layers.
    recomputed: passes over a layer that remat adds: 0 or 1.
  """

  parameters: dict[tuple[bool, bool], int]
  tokens: int
  layers: int
  sublayers: int
  embed_dim: int
  kv_dim: int
  expert_layers: int
  experts_per_token: int
  microbatches: int
  itemsize: int
  recomputed: int


def messages(layout: Layout, step: Step) -> Iterator[tuple[str, tuple[str, ...], float]]:
  """Kind, mesh axes and bytes a step on one device (of the larger side) of every group of collectives."""
  mesh = layout.mesh.shape
  stages, tensor, expert = mesh['pipeline'], mesh['tensor'], mesh['expert']
  for (is_expert, in_layers), number in step.parameters.items():
    used = number / tensor / (expert if is_expert else 1) / (stages if in_layers else 1)
    yield from _of_parameters(layout, used, is_expert, in_layers, step)
  tokens = step.tokens / layout.data_parallel_size / mesh['sequence']
  stream = tokens * step.embed_dim * step.itemsize
  passes = 2 + step.recomputed
  if tensor > 1:
    times = (step.sublayers / stages + 1) * passes  # the embedding and the head are one more branch
    if layout.sequence_parallel:
      yield 'all-gather', ('tensor',), times * stream
      yield 'reduce-scatter', ('tensor',), times * stream
    else:
      yield 'all-reduce', ('tensor',), times * stream
  if mesh['sequence'] > 1:
    keys = tokens * step.kv_dim * step.itemsize / tensor
    steps = (mesh['sequence'] - 1) * step.layers / stages
    yield 'collective-permute', ('sequence',), steps * keys * (1 + step.recomputed + 2 * _WIDE / step.itemsize)
  if expert > 1:
    yield ('all-to-all', ('expert',), step.expert_layers / stages * 2 * passes * stream * step.experts_per_token)
  if stages > 1:
    yield 'collective-permute', ('pipeline',), 2 * stream


def _of_parameters(layout, used, is_expert, in_layers, step):
  rows = ('data',) if is_expert else ('data', 'expert')
  fsdp, stage = ('fsdp',), layout.zero_stage
  if stage >= 3:
    gathers = 2 if in_layers else 1
    yield 'all-gather', fsdp, used * step.itemsize * gathers * step.microbatches
  if stage >= 2:
    yield 'reduce-scatter', fsdp, used * _WIDE * step.microbatches
    yield 'all-reduce', rows, used * _WIDE / layout.mesh.shape['fsdp']
  else:
    yield 'all-reduce', (*rows[:1], *fsdp, *rows[1:]), used * _WIDE
  if stage in (1, 2):
    yield 'all-gather', fsdp, used * _WIDE


def bubble(layout: Layout, microbatches: int) -> float:
  """The share of a step that the stages of a pipeline wait (Narayanan et al. 2021, section 2.2)."""
  stages = layout.mesh.shape['pipeline']
  return (stages - 1) / (microbatches + stages - 1)


def meshes(device_count: int, num_experts: int = 0, heads: int = 1, together: int = 8) -> Iterator[dict[str, int]]:
  """Sizes of meshes worth trying: heads over neighbours, experts where there are some, the rest over data and fsdp.

  Args:
    device_count: devices of these axes.
    num_experts: of a layer; 0 = none.
    heads: that tensor must divide.
    together: most devices that share a layer.
  """
  for tensor in _divisors(math.gcd(device_count, heads)):
    for expert in _divisors(math.gcd(device_count // tensor, max(num_experts, 1))):
      rest = device_count // tensor // expert
      for fsdp in _divisors(rest):
        if tensor <= together:
          yield {'data': rest // fsdp, 'fsdp': fsdp, 'expert': expert, 'tensor': tensor}


def row_parts(sizes: Mapping[str, int]) -> int:
  """Parts that the rows of a batch are split into by axes of these sizes."""
  return sizes['data'] * sizes['fsdp'] * sizes['expert']


def fixed_parts(mesh_config) -> int:
  """Devices of the axes that `meshes` leaves alone."""
  return max(mesh_config.pipeline, 1) * max(mesh_config.sequence, 1)


def can_shard(sizes: Mapping[str, int]) -> bool:
  """Whether a ZeRO stage makes a difference."""
  return sizes['fsdp'] > 1


def can_split_residual(sizes: Mapping[str, int]) -> bool:
  """Whether sequence parallelism makes a difference."""
  return sizes['tensor'] > 1


def _divisors(number):
  return [n for n in range(1, number + 1) if number % n == 0]
