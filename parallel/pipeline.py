"""Layers over devices one after the other, microbatches in a pipeline through them.

Devices of one mesh axis hold consecutive layers. In every tick each of them applies a stage of its layers to one
microbatch and hands the result on to its neighbour (`ppermute`), so that p microbatches are under way at once. With
`rounds` v > 1 each device holds v stages that are not neighbours and a microbatch goes round v times, which divides the
time in which devices stand idle by v (Narayanan et al. 2021, "Efficient large-scale language model training on GPU
clusters", section 2.2); v = 1 is GPipe's schedule (Huang et al. 2019).

The program is one scan over ticks, its backward pass the same pipeline run backwards. A stage is computed again in the
backward pass from what entered it: kept are the inputs of v m + p - 1 ticks, one microbatch of the stream each, and what
differentiation keeps inside the one stage that is being computed again. 1F1B keeps what differentiation keeps inside a
stage p times, and GPipe m times.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec


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

  def work(self, tick, device):
    """Round, microbatch and whether there is any work at all, of one device in one tick; traceable."""
    unit = tick - device
    busy = (unit >= 0) & (unit < self.rounds * self.microbatches)
    unit = jnp.clip(unit, 0, self.rounds * self.microbatches - 1)
    group, place = unit // self.stages, unit % self.stages
    return place // self.devices, group * self.devices + place % self.devices, busy


def run(stage, params, microbatches, shared, schedule: Schedule, mesh, axis: str = 'pipeline'):
  """Applies all layers to all microbatches.

  Args:
    stage: `stage(params, x, shared, number, microbatch) -> (x, sums)` applies one stage. Its params have a leading
      axis of the layers of the stage, `x` is one microbatch, `number` the stage's and `microbatch` that one's, int32
      scalars. What it returns has the shapes of `x`; `sums` is any pytree of floats. It may use any mesh axis but
      `axis`, by sharding constraints or in a shard_map of its own (with check_vma=False).
    params: pytree of arrays with a leading axis of all layers in order, split over `axis`, whose size the number of
      stages divides. For several rounds each device trades its layers for those of its stages, once.
    microbatches: pytree of arrays with a leading axis of m, split over `axis`. All of them travel; put everything here
      that belongs to the rows of a microbatch.
    shared: pytree of arrays that are the same for all stages and microbatches.
    schedule: whose `devices` is the size of `axis`.
    mesh: the mesh; axes besides `axis` stay with the compiler.
    axis: the mesh axis of the pipeline.

  Returns:
    The microbatches after the last layer, split as they came, and the sums added up over stages and microbatches.
  """
  last = schedule.rounds - 1

  def on_device(params, microbatches, shared):
    device = jax.lax.axis_index(axis)
    stages = jax.tree.map(lambda x: _by_round(x, schedule, axis), params)
    inputs = jax.tree.map(lambda x: jax.lax.all_gather(x, axis, tiled=True), microbatches)

    @jax.checkpoint
    def compute(stages, x, shared, turn, microbatch):
      return stage(_at(stages, turn), x, shared, turn * schedule.devices + device, microbatch)

    def tick(carry, time):
      x, outputs = carry
      turn, microbatch, busy = schedule.work(time, device)
      enters = (device == 0) & (turn == 0)
      x = jax.tree.map(lambda new, old: jnp.where(enters, new, old), _at(inputs, microbatch), x)
      y, sums = compute(stages, x, shared, turn, microbatch)
      leaves = busy & (turn == last)
      outputs = jax.tree.map(lambda all_, one: _put(all_, one, microbatch, leaves), outputs, y)
      sums = jax.tree.map(lambda s: jnp.where(busy, s, 0), sums)
      y = jax.tree.map(lambda leaf: _handed_on(leaf, schedule.devices, axis), y)
      return (y, outputs), sums

    # Idle devices compute on real rows, whose result nobody reads: nothing is undefined that the rows do not make so.
    start = _at(inputs, 0), jax.tree.map(jnp.zeros_like, inputs)
    (_, outputs), sums = jax.lax.scan(tick, start, jnp.arange(schedule.ticks))
    outputs = jax.tree.map(lambda x: _from_last(x, device == schedule.devices - 1, axis), outputs)
    return outputs, jax.tree.map(lambda s: jax.lax.psum(jnp.sum(s, axis=0), axis), sums)

  split, whole = PartitionSpec(axis), PartitionSpec()
  # Inner shard_maps have residuals that vary over all axes, which check_vma cannot state.
  return jax.shard_map(
    on_device,
    mesh=mesh,
    in_specs=(split, split, whole),
    out_specs=(split, whole),
    axis_names={axis},
    check_vma=False,
  )(params, microbatches, shared)


def _at(tree, index):
  return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, index, keepdims=False), tree)


def _put(all_, one, index, condition):
  old = jax.lax.dynamic_index_in_dim(all_, index, keepdims=False)
  return jax.lax.dynamic_update_index_in_dim(all_, jnp.where(condition, one, old), index, 0)


def _handed_on(x, devices, axis):
  return jax.lax.ppermute(x, axis, [(i, (i + 1) % devices) for i in range(devices)])


def _from_last(x, is_last, axis):
  """The last device's microbatches, split over all of them."""
  return jax.lax.psum_scatter(jnp.where(is_last, x, jnp.zeros_like(x)), axis, tiled=True)


def _by_round(layers, schedule, axis):
  """This device's layers [v, layers of a stage, ...], of consecutive layers as they are stored."""
  devices, rounds = schedule.devices, schedule.rounds
  stored = layers.reshape(rounds, -1, *layers.shape[1:])
  if rounds == 1:
    return stored
  device, found = jax.lax.axis_index(axis), jnp.zeros_like(stored)
  for places in _exchanges(devices, rounds):
    sources = np.argsort((np.arange(devices) * rounds + places) % devices)
    stages = sources * rounds + places[sources]
    pairs = list(zip(sources.tolist(), range(devices)))
    sent = jax.lax.dynamic_index_in_dim(stored, jnp.asarray(places)[device], keepdims=False)
    received = jax.lax.ppermute(sent, axis, pairs)
    found = jax.lax.dynamic_update_index_in_dim(found, received, jnp.asarray(stages // devices)[device], 0)
  return found


def _exchanges(devices, rounds):
  """Which of its stages each device sends, exchange by exchange: each sends one and gets one.

  Device e stores stages e v to e v + v - 1, of which stage s belongs on device s modulo p. With g = gcd(p, v), e v
  modulo p takes the multiples of g, each for g devices that are p / g apart; these send stages that differ modulo g.
  """
  period = devices // np.gcd(devices, rounds)
  return [(first + np.arange(devices) // period) % rounds for first in range(rounds)]
