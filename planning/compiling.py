"""The first training step of a config, compiled for a topology, and what the compiler tells of it."""

import collections
import dataclasses
import re
import time

import jax

from pallas_kernels import Device, target
from parallel.collectives import Collective, collectives
from planning import setup, topology
from training import program

_TOO_LARGE = re.compile(r'Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) hbm')
_UNITS = {'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}
_CUSTOM_CALL = re.compile(r'custom_call_target="(tpu_custom_call|mosaic_gpu[\w.]*|__cudnn\$\w+|triton[\w$.]*)"')


class DoesNotFit(ValueError):
  """A program needs more memory than a device has."""

  def __init__(self, message: str, needed: int, available: int):
    super().__init__(message)
    self.needed, self.available = needed, available


@dataclasses.dataclass(frozen=True)
class Compiled:
  """What is known of a compiled step. Bytes are those of one device.

  Attributes:
    program: what was compiled.
    lower_seconds, compile_seconds: how long it took.
    argument_bytes: of the state and the batch; the state is donated.
    temporary_bytes: of all else that is there at once, gradients among it.
    planned_bytes: all of it.
    collectives: of a step.
    kernels: how many calls the program has of each kind of kernel.
    attention: implementations that were chosen.
  """

  program: program.Program
  lower_seconds: float
  compile_seconds: float
  argument_bytes: int
  temporary_bytes: int
  planned_bytes: int
  collectives: tuple[Collective, ...]
  kernels: dict[str, int]
  attention: tuple[str, ...]

  @property
  def exchanges(self) -> list:
    """(collective, mesh axes, count a step, bytes a step), those that move most first."""
    shape, groups = self.program.mesh.shape, collections.defaultdict(lambda: [0, 0, None])
    for collective in self.collectives:
      entry = groups[collective.kind, collective.mesh_axes(shape)]
      entry[0] += collective.times
      entry[1] += collective.times * collective.bytes
      entry[2] = collective
    rows = [(kind, axes, count, moved) for (kind, axes), (count, moved, _) in groups.items()]
    return sorted(rows, key=lambda row: -row[3])


def step(problem: setup.Problem, config, where: topology.Topology, target_config: str | None = None) -> Compiled:
  """Compiles the training step of a config; arguments as of `estimate.estimate` and `topology.devices`.

  Raises:
    DoesNotFit: the compiler says that the memory does not suffice.
    ValueError: the config cannot be laid out over these devices, or nothing can be compiled for them here.
  """
  devices = topology.devices(where, target_config)
  with target(Device.of(devices[0])):
    start = time.perf_counter()
    built = program.build(config, epoch_steps=1.0, devices=devices)
    rows = config.data.batch_tokens // config.data.sequence_length
    lowered = built.step.lower(built.abstract_state, setup.batch_shapes(problem.row, rows, built.batch_shardings))
    middle = time.perf_counter()
    try:
      compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
      raise _explained(error, where) from error
    end = time.perf_counter()
  memory, text = compiled.memory_analysis(), compiled.as_text()
  new = memory.output_size_in_bytes - memory.alias_size_in_bytes
  return Compiled(
    built,
    middle - start,
    end - middle,
    memory.argument_size_in_bytes,
    memory.temp_size_in_bytes,
    memory.argument_size_in_bytes + memory.temp_size_in_bytes + new,
    tuple(collectives(text)),
    dict(collections.Counter(_CUSTOM_CALL.findall(text))),
    tuple(sorted(set(re.findall(r'attention_(hopper|tpu|blockwise|reference|cudnn)\b', text)))),
  )


def _explained(error, where):
  found = _TOO_LARGE.search(str(error))
  if not found:
    return ValueError(f'the step does not compile for {where.text}: {error}')
  needed, available = (int(float(found[i]) * _UNITS[found[i + 1]]) for i in (1, 3))
  return DoesNotFit(f'{where.text}: the compiler: {found.group()}', needed, available)
