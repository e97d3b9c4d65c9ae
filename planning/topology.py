"""Devices that programs are compiled for without being there: 'v5e:16x16', 'v5p:8x8x8', 'h200:32'."""

import dataclasses
import math
import os
import pathlib
import re

import jax
from jax.experimental import topologies

import scaling
import scaling.hardware

_H200 = pathlib.Path(__file__).with_name('h200.txtpb')
_EXAMPLES = 'v5e:16x16, v5p:8x8x8 or h200:32'
# In what an H100 differs from an H200, of what XLA is told.
_AS_H100 = {
  'memory_bandwidth: 4800000000000': 'memory_bandwidth: 3350000000000',
  'device_memory_size: 151397597184': 'device_memory_size: 85520809984',
  'NVIDIA H200': 'NVIDIA H100 80GB HBM3',
}


@dataclasses.dataclass(frozen=True)
class Topology:
  """Chips that are joined in one way.

  Attributes:
    text: as it was given.
    accelerator: which chip.
    shape: chips along each dimension of the torus; of GPUs the number alone.
  """

  text: str
  accelerator: scaling.Accelerator
  shape: tuple[int, ...]

  @property
  def num_chips(self) -> int:
    return math.prod(self.shape)

  @property
  def num_devices(self) -> int:
    """The number of JAX devices."""
    return self.num_chips * self.accelerator.devices

  @property
  def device(self) -> scaling.Accelerator:
    """One JAX device's share of a chip."""
    return self.accelerator.device


def parse(text: str) -> Topology:
  """Reads NAME:SHAPE.

  Raises:
    ValueError: says what is wrong and what to type.
  """
  name, colon, shape = text.partition(':')
  if not colon or not re.fullmatch(r'[1-9]\d*(x[1-9]\d*)*', shape):
    raise ValueError(f'the topology {text!r} is not NAME:SHAPE with whole numbers; type for example {_EXAMPLES}')
  accelerator = scaling.hardware.named(name)
  sizes = tuple(map(int, shape.split('x')))
  if accelerator.torus and len(sizes) != accelerator.torus:
    example = {2: '16x16', 3: '8x8x8'}[accelerator.torus]
    raise ValueError(
      f'the topology {text!r} has {len(sizes)} dimensions, but {name} has a torus of {accelerator.torus}; type for '
      f'example {name}:{example}'
    )
  if not accelerator.torus and len(sizes) != 1:
    raise ValueError(f'the topology {text!r} has a shape, but GPUs are only counted; type {name}:{math.prod(sizes)}')
  if accelerator.torus and math.prod(sizes) > accelerator.island:
    raise ValueError(
      f'the topology {text!r} has {math.prod(sizes):,} chips, but a pod of {name} has {accelerator.island:,}'
    )
  if not accelerator.torus and sizes[0] > accelerator.island and sizes[0] % accelerator.island:
    raise ValueError(
      f'the topology {text!r} does not fill its hosts, which have {accelerator.island} GPUs; type '
      f'{name}:{-(-sizes[0] // accelerator.island) * accelerator.island}'
    )
  return Topology(text, accelerator, sizes)


def stay_on_cpu() -> None:
  """Makes JAX use the CPU alone, so that compilers start without devices; before the first use of a device."""
  os.environ['JAX_PLATFORMS'] = 'cpu'  # read by the CUDA plugin, which then asks for no driver
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
  # libtpu locks a file against processes that would share a chip, and here is none.
  os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
  jax.config.update('jax_platforms', 'cpu')


def devices(topology: Topology, target_config: str | None = None) -> list[jax.Device]:
  """The devices of a topology, which need not be there; after `stay_on_cpu`.

  Args:
    topology: what `parse` gave.
    target_config: GPUs: file with XLA's GpuTargetConfigProto in text; None: the one kept here for H200 and H100.

  Raises:
    ValueError: the compiler for them is not installed, or does not know the topology.
  """
  compiler = _tpu if topology.accelerator.torus else _gpu
  try:
    return list(compiler(topology, target_config).devices)
  except (RuntimeError, NotImplementedError, jax.errors.JaxRuntimeError) as error:
    extra = 'tpu-compile' if topology.accelerator.torus else 'gpu-compile'
    raise ValueError(
      f'nothing can be compiled for {topology.text} here; pip install "meshlm[{extra}]" brings the compiler, and it '
      f'says: {error}'
    ) from error


def _tpu(topology, target_config):
  if target_config:
    raise ValueError(f'{topology.text} is no GPU and takes no description of one; leave out --target_config')
  return topologies.get_topology_desc(platform='tpu', topology_name=topology.text)


def _gpu(topology, target_config):
  name, count = topology.accelerator.name, topology.num_chips
  if target_config is None and name not in ('h200', 'h100'):
    raise ValueError(
      f'compiling for {name} takes its description by XLA: --target_config=FILE; h200 and h100 need none'
    )
  text = pathlib.Path(target_config or _H200).read_text(encoding='utf-8')
  if target_config is None and name == 'h100':
    for old, new in _AS_H100.items():
      text = text.replace(old, new)
  jax.devices()  # loads the CUDA plugin
  host = min(count, topology.accelerator.island)
  return topologies.get_topology_desc(
    platform='cuda', topology_name=name, target_config=text, topology=f'1x{count // host}x{host}'
  )


def exchange(kind: str, axes: tuple[str, ...], moved: float, mesh_shape, where: Topology) -> scaling.Exchange:
  """A collective over axes of a mesh, as the roofline wants it.

  Args:
    kind, axes, moved: of one device, all calls of a step together.
    mesh_shape: sizes by name, outermost first.
    where: the devices, of which those beside each other in the mesh are joined by links.
  """
  size = math.prod(mesh_shape[name] for name in axes)
  device = where.device
  islands, stride = 1, 1
  if not device.torus and where.num_devices > device.island:
    # The devices of a group that stand in one island: axes are laid out innermost first.
    here = 1
    for name in reversed(tuple(mesh_shape)):
      inside = math.gcd(mesh_shape[name], max(1, device.island // stride))
      here *= inside if name in axes else 1
      stride *= mesh_shape[name]
    islands = size // here
  return scaling.Exchange(kind, moved, size, islands, '+'.join(axes), _dimensions(size, where))


def _dimensions(size, where) -> int:
  """Dimensions of the torus that a group fills; an axis is laid along one before it takes the next."""
  filled, product = 0, 1
  for length in sorted(where.shape):
    product *= length
    filled += product <= size
  return max(1, filled)
