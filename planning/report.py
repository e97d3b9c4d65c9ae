"""A plan in words and as JSON."""

import dataclasses
import math

import scaling
import scaling.flops
import scaling.roofline
from planning import compiling, layout, topology
from planning.estimate import Estimate
from training import counting, program

_GIB = 2**30
# The share of a device's memory that a program may plan for; the rest is the runtime's.
USABLE = 0.95


@dataclasses.dataclass(frozen=True)
class Plan:
  """What is known of a config on a topology.

  Attributes:
    config: resolved.
    where: the topology.
    estimate: by arithmetic.
    compiled: by the compiler; None where it was not asked, or where the step does not fit.
    misfit: what the compiler says of a step that does not fit, or None.
  """

  config: object
  where: topology.Topology
  estimate: Estimate
  compiled: compiling.Compiled | None
  misfit: compiling.DoesNotFit | None = None

  @property
  def needed_bytes(self) -> int:
    """Bytes of a device, by the compiler where it knows."""
    if self.misfit:
      return self.misfit.needed
    return self.compiled.planned_bytes if self.compiled else self.estimate.total_bytes

  @property
  def usable_bytes(self) -> int:
    return self.misfit.available if self.misfit else int(USABLE * self.where.device.memory_bytes)

  @property
  def fits(self) -> bool:
    return self.needed_bytes <= self.usable_bytes

  @property
  def bound(self) -> scaling.Bound:
    """The roofline, with the messages of the compiled program where there is one."""
    if not self.compiled:
      return self.estimate.bound
    shape = self.compiled.program.mesh.shape
    exchanges = [
      topology.exchange(kind, axes, moved, shape, self.where)
      for kind, axes, _, moved in self.compiled.exchanges
      if axes
    ]
    return scaling.roofline.bound(self.where.device, self.estimate.flops, self.estimate.memory_bytes, exchanges)

  @property
  def seconds(self) -> float:
    """The least time of a step."""
    return self.bound.seconds / (1 - self.estimate.bubble)

  @property
  def tokens_per_second(self) -> float:
    return self.config.data.batch_tokens / self.seconds

  @property
  def mfu(self) -> float:
    peak = self.where.device.bfloat16 * self.where.num_devices
    return self.estimate.model_flops / self.seconds / peak

  @property
  def days(self) -> float | None:
    """Of the whole run; None where its length is in epochs of data that is not read here."""
    try:
      steps = program.resolve_lengths(self.config).run
    except ValueError:
      return None
    return steps * self.seconds / scaling.flops.SECONDS_PER_DAY


def misfit_words(plan: Plan) -> str:
  """What does not fit and by how much."""
  largest = sorted(plan.estimate.bytes.items(), key=lambda pair: -pair[1])[:3]
  return (
    f'{plan.where.text}: a step needs {_gib(plan.needed_bytes)} of each device, of which {_gib(plan.usable_bytes)} can '
    f'be used: {_gib(plan.needed_bytes - plan.usable_bytes)} too much; the largest parts are '
    f'{", ".join(f"{kind} {_gib(size)}" for kind, size in largest)}; try --suggest, a larger mesh, zero_stage, '
    "model.remat='full' or optimizer.accumulation_steps"
  )


def text(plan: Plan) -> str:
  """The whole plan for people."""
  parts = [_head(plan), _memory(plan), _messages(plan), _roofline(plan)]
  return '\n\n'.join(parts)


def _head(plan):
  config, mesh = plan.config, plan.where
  compiled = plan.compiled
  model = config.model
  words = ', '.join(f'{key} {size}' for key, size in config.mesh.items() if size not in (1, False))
  first = (
    f'{mesh.text}: {mesh.num_chips:,} chips; mesh {words or "of one device"}; zero_stage {config.zero_stage}, remat '
    f'{model.remat}, {config.precision.dtype}, {config.data.batch_tokens:,} tokens a step in '
    f'{config.optimizer.accumulation_steps} microbatches, rows of {config.data.sequence_length:,}'
  )
  if not compiled:
    return first
  counts = counting.parameters(compiled.program.model)
  kernels = ', '.join(f'{count} calls of {name}' for name, count in sorted(compiled.kernels.items())) or 'none'
  seconds = compiled.lower_seconds + compiled.compile_seconds
  return (
    f'{first}\nparameters: {counts.total / 1e9:.3f}B, without embeddings {counts.non_embedding / 1e9:.3f}B, active '
    f'{counts.active / 1e9:.3f}B\ncompiled in {seconds:.1f} s (traced and lowered in {compiled.lower_seconds:.1f}); '
    f'attention: {", ".join(compiled.attention) or "none"}; kernels: {kernels}'
  )


def _memory(plan):
  estimate, compiled = plan.estimate, plan.compiled
  rows = [[kind, _gib(size), ''] for kind, size in estimate.bytes.items() if size]
  if compiled:
    held = sum(estimate.bytes[kind] for kind in ('parameters', 'optimizer', 'average', 'batch'))
    rows.append(['arguments', _gib(held), _gib(compiled.argument_bytes)])
    temporaries = sum(estimate.bytes[kind] for kind in ('gradients', 'activations', 'working'))
    rows.append(['temporaries', _gib(temporaries), _gib(compiled.temporary_bytes)])
  total = _gib(plan.needed_bytes) if compiled or plan.misfit else ''
  rows.append(['together', _gib(estimate.total_bytes), total])
  rows.append(['can be used', '', _gib(plan.usable_bytes)])
  return table(['bytes of a device', 'estimate', 'compiler'], rows)


def _messages(plan):
  if not plan.compiled:
    rows = [[x.kind, x.label, '', _gib(x.bytes)] for x in sorted(plan.estimate.exchanges, key=lambda x: -x.bytes)]
  else:
    rows = [
      [kind, '+'.join(axes) or '-', f'{count:,}', _gib(moved)] for kind, axes, count, moved in plan.compiled.exchanges
    ]
  if not rows:
    return 'no collectives'
  return table(['collective', 'mesh axes', 'a step', 'bytes of a device'], rows)


def _roofline(plan):
  bound, estimate = plan.bound, plan.estimate
  rows = [[name, _time(value), '<- bound' if name == bound.name else ''] for name, value in bound.times.items()]
  lines = [table(['at best', 'a step', ''], rows)]
  if estimate.bubble:
    lines.append(f'a pipeline waits {estimate.bubble:.1%} of a step')
  days = 'unknown (train.steps is in epochs)' if plan.days is None else f'{plan.days:,.2f} days for the run'
  lines.append(
    f'model FLOPs a step {estimate.model_flops:.3e}, executed on a device {estimate.flops:.3e}\n'
    f'at best {plan.tokens_per_second:,.0f} tokens/s, MFU {plan.mfu:.1%}, {days}'
  )
  return '\n'.join(lines)


def table(headers: list[str], rows: list[list[str]]) -> str:
  """Columns of text, the first to the left."""
  widths = [max(len(row[i]) for row in [headers, *rows]) for i in range(len(headers))]
  line = lambda row: '  '.join(
    cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths))
  )
  return '\n'.join(
    [line(headers).rstrip(), '  '.join('-' * width for width in widths), *(line(r).rstrip() for r in rows)]
  )


def to_json(plan: Plan) -> dict:
  """The plan for programs."""
  estimate, compiled = plan.estimate, plan.compiled
  found = {
    'topology': plan.where.text,
    'chips': plan.where.num_chips,
    'sources': plan.where.accelerator.sources,
    'mesh': dict(plan.config.mesh.items()),
    'zero_stage': plan.config.zero_stage,
    'fits': plan.fits,
    'needed_bytes': plan.needed_bytes,
    'usable_bytes': plan.usable_bytes,
    'estimated_bytes': estimate.bytes,
    'model_flops': estimate.model_flops,
    'device_flops': estimate.flops,
    'bubble': estimate.bubble,
    'roofline_seconds': plan.bound.times,
    'bound': plan.bound.name,
    'tokens_per_second': plan.tokens_per_second,
    'mfu': plan.mfu,
    'days': plan.days,
  }
  if compiled:
    counts = counting.parameters(compiled.program.model)
    found['compiled'] = {
      'parameters': dataclasses.asdict(counts),
      'lower_seconds': compiled.lower_seconds,
      'compile_seconds': compiled.compile_seconds,
      'bytes': {
        'arguments': compiled.argument_bytes,
        'temporaries': compiled.temporary_bytes,
        'all': compiled.planned_bytes,
      },
      'kernels': compiled.kernels,
      'attention': compiled.attention,
      'collectives': [
        {'kind': kind, 'axes': axes, 'count': count, 'bytes': moved} for kind, axes, count, moved in compiled.exchanges
      ],
    }
  return found


def layout_text(leaves: list[layout.Leaf], mesh_shape) -> str:
  """A line an array of the state, and what a device holds of each kind."""
  rows = [[leaf.path, leaf.kind, str(leaf.shape), leaf.dtype, leaf.split, f'{leaf.bytes:,}'] for leaf in leaves]
  totals = ', '.join(f'{kind} {_gib(size)}' for kind, size in layout.bytes_by_kind(leaves).items() if size)
  shape = ' x '.join(f'{name} {size}' for name, size in mesh_shape.items() if size > 1) or 'one device'
  headers = ['array', 'of', 'shape', 'dtype', 'split over', 'bytes of a device']
  return f'{table(headers, rows)}\n\n{shape}; a device holds: {totals}'


def _gib(size) -> str:
  return f'{size / _GIB:,.2f} GiB' if abs(size) >= _GIB / 100 or not size else f'{size / 2**20:,.3f} MiB'


def _time(seconds) -> str:
  return f'{1e3 * seconds:,.1f} ms' if math.isfinite(seconds) else 'never'
