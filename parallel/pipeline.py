"""Layers over devices one after the other, microbatches in a pipeline through them.

Devices of one mesh axis hold consecutive layers. In every tick each of them applies a stage of its layers to one
microbatch and hands the result on to its neighbour (`ppermute`), so that p microbatches are under way at once. With
`rounds` v > 1 each device holds v stages that are not neighbours and a microbatch goes round v times, which divides the
time in which devices stand idle by v (Narayanan et al. 2021, "Efficient large-scale language model training on GPU
clusters", section 2.2); v = 1 is GPipe's schedule (Huang et al. 2019).

The program is one scan over ticks, its backward pass the same pipeline run backwards. A stage is computed again in the
backward pass from what entered it: kept are the inputs of v m + p - 1 ticks, one microbatch of the stream each, and
what differentiation keeps inside the one stage that is being computed again. 1F1B keeps what differentiation keeps
inside a stage p times, and GPipe m times.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

AXIS = 'pipeline'  # of the mesh


@dataclasses.dataclass(frozen=True)
class Schedule:
  """Who works on what, and when.

  Unit u of a device is one microbatch in one of its stages; device d works on unit t - d in tick t. Units are in groups
  of as many microbatches as there are devices, each group in all rounds: what leaves the last device is just what the
  first one needs next.

  Attributes:
    devices: along the axis; p.
    microbatches: that a batch is cut into, a multiple of `devices`; m.
    rounds: stages that each device holds; v. Stage s stands on device s modulo p.

  Raises:
    ValueError: when made with numbers that do not go together.
  """

  devices: int
  microbatches: int
  rounds: int = 1

  def __post_init__(self):
    if self.devices < 1 or self.rounds < 1 or self.microbatches < 1 or self.microbatches % self.devices:
      raise ValueError(
        f'a pipeline of {self.devices} devices and {self.rounds} rounds takes a multiple of {self.devices} '
        f'microbatches, not {self.microbatches}'
      )

  @property
  def stages(self) -> int:
    """The number of parts that the layers are cut into."""
    return self.devices * self.rounds

  @property
  def ticks(self) -> int:
    """From the first microbatch entering to the last one leaving."""
    return self.rounds * self.microbatches + self.devices - 1

  @property
  def bubble(self) -> float:
    """The share of time in which a device stands idle."""
    return (self.devices - 1) / self.ticks

  def describe(self) -> str:
    """For printing."""
    rounds = f' in {self.rounds} rounds' if self.rounds > 1 else ''
    return (
      f'pipeline: {self.microbatches} microbatches through {self.stages} stages on {self.devices} devices{rounds}; '
      f'each device is idle {self.devices - 1} of {self.ticks} ticks, {self.bubble:.1%} of the time'
    )

  def work(self, tick, device):
    """Round, microbatch and whether there is any work at all, of one device in one tick; traceable."""
    unit = tick - device
    busy = (unit >= 0) & (unit < self.rounds * self.microbatches)
    unit = unit.clip(0, self.rounds * self.microbatches - 1)
    group, place = unit // self.stages, unit % self.stages
    return place // self.devices, group * self.devices + place % self.devices, busy


def run(stage, params, x, of_rows, shared, schedule: Schedule, mesh):
  """Applies all layers to all microbatches.

  Args:
    stage: `stage(params, x, of_rows, shared, number, microbatch) -> (x, sums)` applies one stage. Its params have a
      leading axis of the layers of the stage, `x` and `of_rows` are one microbatch's, `number` is the stage's and
      `microbatch` that one's, int32 scalars; `sums` is any pytree of floats. It may use the other mesh axes by sharding
      constraints or in a shard_map of its own (with check_vma=False, as residuals also vary over the pipeline).
    params: pytree of arrays with a leading axis of all layers in order, split over the pipeline, whose size the number
      of stages divides. For several rounds each device trades its layers for those of its stages, once.
    x: array [m, ...] split over the pipeline, what flows through.
    of_rows: pytree of arrays [m, ...], split likewise, that go with it and stay as they are.
    shared: pytree of arrays that are the same for all stages and microbatches.
    schedule: whose `devices` is the size of the mesh axis.
    mesh: of which the other axes stay with the compiler.

  Returns:
    x after the last layer, split as it came, and the sums of each stage over the microbatches, [stages, ...].
  """

  def on_device(params, x, of_rows, shared):
    device = jax.lax.axis_index(AXIS)
    stages = jax.tree.map(lambda layers: _by_round(layers, schedule), params)
    inputs = jax.tree.map(lambda array: jax.lax.all_gather(array, AXIS, tiled=True), (x, of_rows))

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def compute(stages, x, of_rows, shared, turn, microbatch):
      return stage(_at(stages, turn), x, of_rows, shared, turn * schedule.devices + device, microbatch)

    def tick(carry, time):
      under_way, outputs = carry
      turn, microbatch, busy = schedule.work(time, device)
      enters = (device == 0) & (turn == 0)
      select = lambda new, old: jnp.where(enters, new, old)
      x, of_rows = jax.tree.map(select, _at(inputs, microbatch), under_way)
      y, sums = compute(stages, x, of_rows, shared, turn, microbatch)
      outputs = _put(outputs, y, microbatch, busy & (turn == schedule.rounds - 1))
      return (_handed_on((y, of_rows), schedule), outputs), jax.tree.map(lambda s: jnp.where(busy, s, 0), sums)

    # An idle device computes on rows that are there, so that nothing can be undefined in what nobody reads.
    start = _at(inputs, 0), jnp.zeros_like(inputs[0])
    (_, outputs), sums = jax.lax.scan(tick, start, jnp.arange(schedule.ticks))
    outputs = jnp.where(device == schedule.devices - 1, outputs, 0)
    outputs = jax.lax.psum_scatter(outputs, AXIS, tiled=True)
    turns, _, _ = schedule.work(jnp.arange(schedule.ticks), device)
    of_turns = lambda s: jnp.zeros((schedule.rounds, 1, *s.shape[1:]), s.dtype).at[turns, 0].add(s)
    return outputs, jax.tree.map(of_turns, sums)

  split, whole = PartitionSpec(AXIS), PartitionSpec()
  in_specs = split, split, split, whole
  on_devices = jax.shard_map(
    on_device,
    mesh=mesh,
    in_specs=in_specs,
    out_specs=(split, PartitionSpec(None, AXIS)),
    axis_names={AXIS},
    check_vma=False,
  )
  x, sums = on_devices(params, x, of_rows, shared)
  return x, jax.tree.map(lambda s: s.reshape(schedule.stages, *s.shape[2:]), sums)


def cut(x, shards: int, schedule: Schedule, mesh):
  """Rows [B, ...], split over `shards` devices and within these over the pipeline, as microbatches [m, B / m, ...].

  Each takes the next of the rows that a shard holds, so that no row moves to another device.
  """
  x = x.reshape(shards, schedule.microbatches, -1, *x.shape[1:]).swapaxes(0, 1)
  x = x.reshape(schedule.microbatches, -1, *x.shape[3:])
  others = (PartitionSpec.UNCONSTRAINED,) * (x.ndim - 1)
  return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(AXIS, *others)))


def join(x, shards: int):
  """The rows [B, ...] of microbatches that `cut` made."""
  number = len(x)
  return x.reshape(number, shards, -1, *x.shape[2:]).swapaxes(0, 1).reshape(-1, *x.shape[2:])


def _at(tree, index):
  return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, index, keepdims=False), tree)


def _put(all_, one, index, condition):
  old = jax.lax.dynamic_index_in_dim(all_, index, keepdims=False)
  return jax.lax.dynamic_update_index_in_dim(all_, jnp.where(condition, one, old), index, 0)


def _handed_on(tree, schedule):
  to_next = [(i, (i + 1) % schedule.devices) for i in range(schedule.devices)]
  return jax.tree.map(lambda x: jax.lax.ppermute(x, AXIS, to_next), tree)


def _by_round(layers, schedule):
  """This device's layers [v, layers of a stage, ...], of consecutive layers as they are stored."""
  devices, rounds = schedule.devices, schedule.rounds
  stored = layers.reshape(rounds, -1, *layers.shape[1:])
  if rounds == 1:
    return stored
  device, found = jax.lax.axis_index(AXIS), jnp.zeros_like(stored)
  for places in _exchanges(devices, rounds):
    sources = np.argsort((np.arange(devices) * rounds + places) % devices)
    stages = sources * rounds + places[sources]
    sent = jax.lax.dynamic_index_in_dim(stored, jnp.asarray(places)[device], keepdims=False)
    received = jax.lax.ppermute(sent, AXIS, list(zip(sources.tolist(), range(devices))))
    found = jax.lax.dynamic_update_index_in_dim(found, received, jnp.asarray(stages // devices)[device], 0)
  return found


def _exchanges(devices, rounds):
  """Which of its stages each device sends, exchange by exchange: each sends one and gets one.

  Device e stores stages e v to e v + v - 1, of which stage s belongs on device s modulo p. With g = gcd(p, v), e v
  modulo p takes the multiples of g, each for g devices that are p / g apart; these send stages that differ modulo g.
  """
  period = devices // np.gcd(devices, rounds)
  return [(first + np.arange(devices) // period) % rounds for first in range(rounds)]
