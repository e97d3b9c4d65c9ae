"""The least time a step can take: arithmetic over peak, bytes over bandwidth, messages over links.

Williams et al. 2009; for collectives on rings and tori Austin et al. 2025, How to Scale Your Model, chapter 3. Overlap
is perfect and every peak is reached, so that a real step takes longer.
"""

import collections
import dataclasses
from collections.abc import Iterable, Mapping

from scaling.hardware import Accelerator


@dataclasses.dataclass(frozen=True)
class Exchange:
  """What one device does of one kind of collective in a step.

  Attributes:
    kind: as XLA names it: 'all-gather', 'reduce-scatter', 'all-reduce', 'all-to-all', 'collective-permute', ...
    bytes: on one device, of the larger side, all calls of a step together.
    size: devices of a group.
    islands: that a group is spread over; 1 = all of them are joined by links.
    label: which axes of the mesh it runs over.
    dimensions: of the torus that a group fills, at least 1.
  """

  kind: str
  bytes: float
  size: int
  islands: int = 1
  label: str = ''
  dimensions: int = 1


# Passes of the larger side over a ring.
_PASSES = {
  'all-gather': 1,
  'reduce-scatter': 1,
  'all-reduce': 2,
  'all-to-all': 1,
  'ragged-all-to-all': 1,
  'collective-broadcast': 1,
  'collective-permute': 1,
}


def seconds(exchange: Exchange, accelerator: Accelerator) -> dict[str, float]:
  """Seconds by link: 'links' between devices of an island, 'network' between islands.

  A ring over n devices passes (n - 1)/n of the larger side through each device. Between islands the devices of one
  share its network. On a torus an axis has the links of the dimensions that it fills, both directions of a ring in use;
  a ring of n devices carries an all-to-all n/4 times as slowly as its share (Austin et al. 2025).

  Raises:
    ValueError: the collective is not known, or its accelerator's network is not.
  """
  if exchange.kind not in _PASSES:
    raise ValueError(f'there is no collective {exchange.kind!r}; there are {", ".join(_PASSES)}')
  if exchange.size <= 1:
    return {}
  here = exchange.size // exchange.islands
  moved = _PASSES[exchange.kind] * exchange.bytes
  share = lambda n: 1.0 if exchange.kind == 'collective-permute' else (n - 1) / n
  found = {}
  if here > 1:
    bandwidth, factor = accelerator.link_bandwidth, 1.0
    if accelerator.torus:
      bandwidth *= min(exchange.dimensions, accelerator.torus) / accelerator.torus
      if exchange.kind in ('all-to-all', 'ragged-all-to-all'):
        factor = max(1.0, here ** (1 / max(exchange.dimensions, 1)) / 4)
      if exchange.kind == 'collective-permute':
        factor = 2.0  # to one neighbour: one direction
    found['links'] = moved * share(here) * factor / bandwidth
  if exchange.islands > 1:
    if accelerator.network_bandwidth is None:
      raise ValueError(f'no bandwidth of the network between islands of {accelerator.name} is known; use one island')
    found['network'] = moved * share(exchange.islands) / (here * accelerator.network_bandwidth)
  return found


@dataclasses.dataclass(frozen=True)
class Bound:
  """The least seconds of a step.

  Attributes:
    times: seconds by what is busy: 'compute', 'memory', 'links: tensor', 'network: data', ...
  """

  times: Mapping[str, float]

  @property
  def name(self) -> str:
    """What is busy longest."""
    return max(self.times, key=self.times.__getitem__)

  @property
  def seconds(self) -> float:
    return self.times[self.name]


def bound(
  accelerator: Accelerator,
  flops: float,
  memory_bytes: float,
  exchanges: Iterable[Exchange] = (),
  peak: float | None = None,
) -> Bound:
  """The roofline of one device.

  Args:
    accelerator: one device's share of a chip, see `Accelerator.device`.
    flops: executed on a device in a step.
    memory_bytes: read from and written to its memory in a step.
    exchanges: its collectives.
    peak: FLOP/s; None: those of bfloat16.
  """
  times = collections.defaultdict(float)
  times['compute'] = flops / (peak or accelerator.bfloat16)
  times['memory'] = memory_bytes / accelerator.memory_bandwidth
  for exchange in exchanges:
    for link, value in seconds(exchange, accelerator).items():
      # A torus has links of its own for each axis of the mesh; a switch and a network are shared by all.
      own = link == 'links' and accelerator.torus
      times[f'{link}: {exchange.label}' if own else link] += value
  return Bound(dict(times))
