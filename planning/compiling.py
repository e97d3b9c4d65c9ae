"""The first training step of a config, compiled for a topology, and what the compiler tells of it."""

import collections
import dataclasses
import math
import re
import time

import jax

import scaling
from pallas_kernels import target
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
    flops: of one device, as the compiler counts (a loop's body once); None where it does not.
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
  flops: float | None
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


def step(config, where: topology.Topology, target_config: str | None = None) -> Compiled:
  """Compiles the training step of a resolved config.

  Raises:
    DoesNotFit: the compiler says that the memory does not suffice.
    ValueError: the config cannot be laid out over these devices, or nothing can be compiled for them here.
  """
  devices = topology.devices(where, target_config)
  with target(topology.kind(devices[0])):
    start = time.perf_counter()
    built = program.build(config, epoch_steps=1.0, devices=devices)
    lowered = built.step.lower(built.abstract_state, setup.batch_shapes(config, built.batch_shardings))
    middle = time.perf_counter()
    try:
      compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
      raise _explained(error, where) from error
    end = time.perf_counter()
  memory, text = compiled.memory_analysis(), compiled.as_text()
  new = memory.output_size_in_bytes - memory.alias_size_in_bytes
  analysis = compiled.cost_analysis() or {}
  return Compiled(
    built,
    middle - start,
    end - middle,
    memory.argument_size_in_bytes,
    memory.temp_size_in_bytes,
    memory.argument_size_in_bytes + memory.temp_size_in_bytes + new,
    analysis.get('flops'),
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


def exchange(kind: str, axes: tuple[str, ...], moved: float, mesh_shape, where: topology.Topology) -> scaling.Exchange:
  """A collective over axes of a mesh, as the roofline wants it.

  Args:
    kind, axes, moved: as in `Compiled.exchanges`.
    mesh_shape: sizes by name, outermost first.
    where: the devices, of which those beside each other in the mesh are joined by links.
  """
  size = math.prod(mesh_shape[name] for name in axes)
  device = where.device
  first, stride = 1, 1
  if not device.torus and where.num_devices > device.island:
    # The devices of a group that stand in one island: axes are laid out innermost first.
    here = 1
    for name in reversed(tuple(mesh_shape)):
      inside = math.gcd(mesh_shape[name], max(1, device.island // stride))
      here *= inside if name in axes else 1
      stride *= mesh_shape[name]
    first = size // here
  return scaling.Exchange(kind, moved, size, first, '+'.join(axes), _dimensions(size, where))


def _dimensions(size, where) -> int:
  """Dimensions of the torus that a group fills; an axis is laid along one before it takes the next."""
  filled, product = 0, 1
  for length in sorted(where.shape):
    product *= length
    filled += product <= size
  return max(1, filled)
