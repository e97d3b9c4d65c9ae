"""What accelerators can do at best, with the sources of every figure. B/s are bytes a second, of one chip."""

import dataclasses

_GIB = 2**30
_TPU7X = 'https://docs.cloud.google.com/tpu/docs/tpu7x (table of v5p, v6e and TPU7x)'
_V5P = 'https://docs.cloud.google.com/tpu/docs/v5p'
_V5E = 'https://docs.cloud.google.com/tpu/docs/v5e'
_V6E = 'https://docs.cloud.google.com/tpu/docs/v6e'
_V4 = 'https://docs.cloud.google.com/tpu/docs/v4'
_JOUPPI = 'Jouppi et al. 2023, TPU v4, table 4: 6 links of 50 GB/s'
_V5P_INT8 = 'https://cloud.google.com/blog/products/ai-machine-learning/introducing-cloud-tpu-v5p-and-ai-hypercomputer'
_A100 = 'NVIDIA A100 Tensor Core GPU data sheet, SXM 80 GB (figures with sparsity halved)'
_H100 = 'NVIDIA H100 Tensor Core GPU data sheet (figures with sparsity halved)'
_H200 = 'NVIDIA H200 Tensor Core GPU data sheet (figures with sparsity halved)'
_BLACKWELL = 'NVIDIA Blackwell Architecture Technical Brief, HGX B200, dense'
_DGX = 'https://docs.nvidia.com/dgx: one network adapter for each GPU, 200 Gb/s (A100) or 400 Gb/s (H100, H200, B200)'


@dataclasses.dataclass(frozen=True)
class Accelerator:
  """One kind of chip.

  Attributes:
    name: as topologies name it: 'v5e', 'h200'.
    kinds: how JAX's `device_kind` begins.
    bfloat16, int8, fp8: dense peak, operations a second; None where the chip has none or none is published.
    memory_bytes: of HBM.
    memory_bandwidth: of HBM, B/s.
    link_bandwidth: what a chip can send over all of its links to the chips around it (ICI, NVLink), B/s, one direction.
    torus: dimensions of the torus that the links form; 0 = a switch joins all.
    island: chips that the links join at most: of a pod, or of a host with GPUs.
    network_bandwidth: what a chip's share of the network between islands (DCN, InfiniBand) can send, B/s, one
      direction; None where none is published.
    sources: where the figures are from.
    devices: JAX devices a chip has; they share all of the above.
  """

  name: str
  kinds: tuple[str, ...]
  bfloat16: float
  int8: float | None
  fp8: float | None
  memory_bytes: int
  memory_bandwidth: float
  link_bandwidth: float
  torus: int
  island: int
  network_bandwidth: float | None
  sources: tuple[str, ...]
  devices: int = 1

  @property
  def device(self) -> 'Accelerator':
    """One JAX device's share of the chip."""
    if self.devices == 1:
      return self
    share = lambda value: None if value is None else value / self.devices
    rates = ('bfloat16', 'int8', 'fp8', 'memory_bandwidth', 'link_bandwidth', 'network_bandwidth')
    return dataclasses.replace(
      self,
      devices=1,
      memory_bytes=self.memory_bytes // self.devices,
      island=self.island * self.devices,
      **{rate: share(getattr(self, rate)) for rate in rates},
    )


# Google states the bandwidth of ICI for both directions together; halved here. That of DCN is stated in Gb/s.
ACCELERATORS = (
  Accelerator('v4', ('TPU v4',), 275e12, 275e12, None, 32 * _GIB, 1200e9, 300e9, 3, 4096, None, (_V4, _JOUPPI)),
  Accelerator(
    'v5e', ('TPU v5 lite', 'TPU v5e'), 197e12, 393e12, None, 16 * _GIB, 819e9, 200e9, 2, 256, 3.125e9, (_V5E,)
  ),
  Accelerator(
    'v5p', ('TPU v5',), 459e12, 918e12, 459e12, 95 * _GIB, 2765e9, 600e9, 3, 8960, 6.25e9, (_V5P, _TPU7X, _V5P_INT8)
  ),
  Accelerator('v6e', ('TPU v6',), 918e12, 1836e12, 918e12, 32 * _GIB, 1638e9, 400e9, 2, 256, 12.5e9, (_V6E, _TPU7X)),
  Accelerator(
    'tpu7x', ('TPU7x',), 2307e12, None, 4614e12, 192 * _GIB, 7380e9, 600e9, 3, 9216, 12.5e9, (_TPU7X,), devices=2
  ),
  Accelerator('a100', ('NVIDIA A100',), 312e12, 624e12, None, 80 * _GIB, 2039e9, 300e9, 0, 8, 25e9, (_A100, _DGX)),
  Accelerator(
    'h100-pcie', ('NVIDIA H100 PCIe',), 756e12, 1513e12, 1513e12, 80 * _GIB, 2e12, 300e9, 0, 2, 50e9, (_H100, _DGX)
  ),
  Accelerator(
    'h100-nvl', ('NVIDIA H100 NVL',), 835e12, 1671e12, 1671e12, 94 * _GIB, 3.9e12, 300e9, 0, 2, 50e9, (_H100, _DGX)
  ),
  Accelerator(
    'h100', ('NVIDIA H100',), 989.4e12, 1978.9e12, 1978.9e12, 80 * _GIB, 3.35e12, 450e9, 0, 8, 50e9, (_H100, _DGX)
  ),
  Accelerator(
    'h200',
    ('NVIDIA H200', 'NVIDIA GH200'),
    989.4e12,
    1978.9e12,
    1978.9e12,
    141 * _GIB,
    4.8e12,
    450e9,
    0,
    8,
    50e9,
    (_H200, _DGX),
  ),
  Accelerator(
    'b200', ('NVIDIA B200',), 2250e12, 4500e12, 4500e12, 180 * 10**9, 8e12, 900e9, 0, 8, 50e9, (_BLACKWELL, _DGX)
  ),
)


def named(name: str) -> Accelerator:
  """The accelerator of a name. Raises ValueError with those that there are."""
  for accelerator in ACCELERATORS:
    if accelerator.name == name.lower():
      return accelerator
  raise ValueError(
    f'there is no accelerator {name!r}; there are {", ".join(accelerator.name for accelerator in ACCELERATORS)}'
  )


def of_kind(device_kind: str) -> Accelerator | None:
  """The accelerator of a JAX device by its `device_kind`; None for one that is not in the table."""
  found = [(kind, accelerator) for accelerator in ACCELERATORS for kind in accelerator.kinds]
  found = [(kind, accelerator) for kind, accelerator in found if device_kind.startswith(kind)]
  return max(found, key=lambda pair: len(pair[0]))[1] if found else None
