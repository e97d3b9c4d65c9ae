"""Plans of a config: its layout, its step on a topology, and the meshes that suit it best."""

import dataclasses
import functools
from collections.abc import Callable, Iterator

import parallel
from parallel import messages
from planning import compiling, layout, setup, topology, tracing
from planning.estimate import Estimate, estimate
from planning.report import USABLE, Plan

_ZERO_STAGES = (0, 1, 2, 3)
_REMATS = ('none', 'selective', 'full')
_ATTEMPTS = 6  # programs that a search compiles at most


def state_layout(config, device_count: int) -> tuple[list[layout.Leaf], dict[str, int]]:
  """Every array of a resolved config's state on so many devices, which need not be there, and the mesh's sizes.

  Raises:
    ValueError: the devices cannot form the mesh, or an array cannot be split over it.
  """
  problem = setup.Problem.of(config)
  mesh = parallel.check_mesh(config.mesh, device_count)
  plan = parallel.Layout(mesh, config.zero_stage, config.mesh.sequence_parallel)
  return layout.state_leaves(problem.state, problem.task.logical_axes, plan), dict(mesh.shape)


def device_count(config) -> int | None:
  """The devices that the mesh of a config takes; None where it says -1, all that there are."""
  sizes = [config.mesh[axis] for axis in parallel.AXES]
  product = 1
  for size in sizes:
    product *= size
  return None if -1 in sizes else product


def make_plan(config, where: topology.Topology, target_config: str | None = None) -> Plan:
  """Estimates and compiles the step of a resolved config.

  Args:
    config: resolved.
    where: the devices.
    target_config: as `topology.devices`.

  Raises:
    ValueError: the config cannot be laid out or compiled for these devices.
  """
  problem = setup.Problem.of(config)
  return _compiled(problem, config, where, estimate(problem, config, where, _tracer(problem, where)), target_config)


def _tracer(problem, where) -> Callable:
  return functools.cache(lambda remat: tracing.trace(problem, remat, where))


def _compiled(problem, config, where, estimated, target_config) -> Plan:
  try:
    return Plan(config, where, estimated, compiling.step(problem, config, where, target_config))
  except compiling.DoesNotFit as misfit:
    return Plan(config, where, estimated, None, misfit)


@dataclasses.dataclass(frozen=True)
class Candidate:
  """A layout that arithmetic says is worth compiling."""

  config: object
  estimate: Estimate


def suggest(
  config, where: topology.Topology, number: int = 3, target_config: str | None = None, say: Callable = print
) -> tuple[list[Plan], int]:
  """The best ways to train a config on a topology: mesh, ZeRO stage, remat and accumulation; the rest stays.

  All that fit by arithmetic are ranked by the least time of a step; the first are compiled, until `number` do fit.

  Args:
    config: resolved; axes over the length and over layers stay as it has them.
    where: the devices.
    number: of plans wanted.
    target_config: as `topology.devices`.
    say: told of each program before it is compiled.

  Returns:
    Compiled plans that fit, the fastest first, and how many layouts were estimated.

  Raises:
    ValueError: no layout fits.
  """
  problem = setup.Problem.of(config)
  traced, candidates, smallest, tried = _tracer(problem, where), [], None, 0
  for microbatches in _variants(config, where):
    for changed in microbatches:
      try:
        estimated = estimate(problem, changed, where, traced)
      except ValueError:  # this mesh does not divide the model
        break
      tried += 1
      smallest = min(smallest or estimated.total_bytes, estimated.total_bytes)
      if estimated.total_bytes <= USABLE * where.device.memory_bytes:
        candidates.append(Candidate(changed, estimated))
        break  # more microbatches only say more
  if not candidates:
    wanted = f'the smallest of {tried} layouts needs {smallest / 2**30:.1f} GiB' if tried else 'no mesh divides it'
    raise ValueError(
      f'nothing fits {where.text}, of whose devices each has {where.device.memory_bytes / 2**30:.1f} GiB: {wanted}; '
      'take more devices or larger ones'
    )
  plans, seen = [], set()
  for candidate in sorted(
    candidates, key=lambda candidate: (candidate.estimate.seconds, candidate.estimate.total_bytes)
  ):
    key = tuple(candidate.config.mesh[axis] for axis in parallel.AXES), candidate.config.zero_stage
    if key in seen:  # with another remat or accumulation, and slower
      continue
    if len(seen) == _ATTEMPTS or len(plans) == number:
      break
    seen.add(key)
    say(f'compiling {words(candidate.config)}')
    plan = _compiled(problem, candidate.config, where, candidate.estimate, target_config)
    plans += [plan] if plan.fits else []
  return sorted(plans, key=lambda plan: plan.seconds), tried


def words(config) -> str:
  """The choices of a suggestion as overrides to type."""
  mesh = [f'mesh.{axis}={config.mesh[axis]}' for axis in parallel.AXES if config.mesh[axis] != 1]
  mesh += ['mesh.sequence_parallel=True'] if config.mesh.sequence_parallel else []
  keys = [
    *mesh,
    f'zero_stage={config.zero_stage}',
    f'model.remat={config.model.remat}',
    f'optimizer.accumulation_steps={config.optimizer.accumulation_steps}',
  ]
  return ' '.join(f'--config.{key}' for key in keys)


def _variants(config, where) -> Iterator[Iterator]:
  """Configs to estimate: for each layout and remat, those of more and more microbatches."""
  model_config, rows = config.model, config.data.batch_tokens // config.data.sequence_length
  fixed = messages.fixed_parts(config.mesh)
  if where.num_devices % fixed:
    return
  for mesh in messages.meshes(where.num_devices // fixed, model_config.moe.num_experts, model_config.num_heads):
    shards = messages.row_parts(mesh)
    for sequence_parallel in (False, True) if messages.can_split_residual(mesh) else (False,):
      for stage in _ZERO_STAGES if messages.can_shard(mesh) else (0,):
        for remat in _REMATS:
          chosen = mesh | {'sequence_parallel': sequence_parallel}, stage, remat
          yield (_changed(config, *chosen, steps) for steps in _halvings(rows / shards))


def _changed(config, mesh, stage, remat, accumulation_steps):
  changed = config.copy_and_resolve_references()
  with changed.unlocked():
    changed.mesh.update(mesh)
    changed.zero_stage, changed.model.remat = stage, remat
    changed.optimizer.accumulation_steps = accumulation_steps
  return changed


def _halvings(rows: float) -> list[int]:
  """Numbers of microbatches that leave whole rows to each device: powers of two, and all rows one by one."""
  if rows < 1 or rows != int(rows):
    return []
  steps = [2**power for power in range(int(rows).bit_length()) if rows % 2**power == 0]
  return steps if int(rows) in steps else [*steps, int(rows)]
