"""What a step takes, without compiling it: bytes of a device, FLOPs, messages, and the bound that follows.

State and gradients are counted array by array in the layout of the run, activations by what the traced loss keeps
(`planning.tracing`). The rest are the large temporary arrays of a step: the gathered weights of a layer and their
gradients, the head and its gradient, a chunk of logits.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import parallel
import scaling
import scaling.roofline
from parallel import messages
from planning import layout, setup, topology
from training import counting

_NARROW = {'float32': 4, 'bfloat16': 2}
_LOGITS = {'gpu': 2**28, 'tpu': 2**27}  # of a chunk, as pallas_kernels/cross_entropy.py makes them


@dataclasses.dataclass(frozen=True)
class Estimate:
  """What is expected of a step on each device.

  Attributes:
    bytes: by kind: 'parameters', 'optimizer', 'average', 'batch', 'gradients', 'activations', 'working'.
    model_flops: of the whole step, counted as `scaling.flops` does.
    flops: executed on a device: with recomputation, without pairs of tokens that a mask hides.
    memory_bytes: read from and written to memory.
    exchanges: collectives.
    bubble: share of a step that the stages of a pipeline wait.
    bound: the roofline.
  """

  bytes: dict[str, int]
  model_flops: float
  flops: float
  memory_bytes: float
  exchanges: tuple[scaling.Exchange, ...]
  bubble: float
  bound: scaling.Bound

  @property
  def total_bytes(self) -> int:
    return sum(self.bytes.values())

  @property
  def seconds(self) -> float:
    """The least time of a step, waiting of a pipeline included."""
    return self.bound.seconds / (1 - self.bubble)


@dataclasses.dataclass(frozen=True)
class _Part:
  """What one device has of a step.

  Attributes:
    rows: of a microbatch.
    microbatches: accumulation steps.
    length_parts: parts of a row.
    vocab_parts: parts of the head.
    layers: of the stacks, those of this device.
    splits: parts by the size of a dimension of arrays that tensor parallelism splits.
    used_bytes: of the stacks' parameters, were all gathered for use at once.
    itemsize: of operands of products.
  """

  rows: float
  microbatches: int
  length_parts: int
  vocab_parts: int
  layers: float
  splits: dict[int, int]
  used_bytes: float
  itemsize: int


def estimate(problem: setup.Problem, config, where: topology.Topology, traced: Callable) -> Estimate:
  """Estimates the step of a config on a topology.

  Args:
    problem: of the config, or of one that differs in mesh, ZeRO stage, remat and accumulation alone.
    config: resolved.
    where: the devices.
    traced: `traced(remat)` gives what `tracing.trace` does.

  Raises:
    ValueError: the config cannot be laid out over these devices.
  """
  mesh = parallel.check_mesh(config.mesh, where.num_devices)
  plan = parallel.Layout(mesh, config.zero_stage, config.mesh.sequence_parallel)
  state_bytes, gradient_bytes = _state(problem, plan)
  held = dict(state_bytes)
  shapes = setup.batch_shapes(problem.row, config.data.batch_tokens // config.data.sequence_length)
  shardings = parallel.batch_shardings(problem.task.batch_axes, plan)
  held['batch'] = sum(layout.device_bytes(leaf, shardings[name]) for name, leaf in shapes.items())
  part, kept, whole = _part(config, problem, plan, shapes), traced(config.model.remat), traced('none')
  held['gradients'] = gradient_bytes * (2 if part.microbatches > 1 else 1)  # their sum, and those of a microbatch
  held['activations'] = round(part.rows * kept.row_bytes(part.splits) / part.length_parts)
  held['working'] = round(_working(config, where, part, whole))
  work = counting.step_work(problem.model, shapes)
  flops, traffic = _executed(config, work) / mesh.size, _traffic(held, part, whole)
  sent = messages.messages(plan, _sizes(config, problem, shapes))
  exchanges = tuple(
    topology.exchange(kind, axes, moved, mesh.shape, where)
    for kind, axes, moved in sent
    if moved and math.prod(mesh.shape[axis] for axis in axes) > 1
  )
  bound = scaling.roofline.bound(where.device, flops, traffic, exchanges)
  bubble = messages.bubble(plan, part.microbatches)
  return Estimate(held, work.training, flops, traffic, exchanges, bubble, bound)


def _elements(plan, spec, shape) -> int:
  return math.prod(plan.sharding(spec).shard_shape(shape))


def _part(config, problem, plan, shapes) -> _Part:
  model_config, microbatches = config.model, config.optimizer.accumulation_steps
  tensor = plan.parts('heads')
  splits = dict.fromkeys((model_config.num_heads, model_config.mlp_dim, model_config.moe.mlp_dim), tensor)
  splits[model_config.num_kv_heads] = math.gcd(tensor, model_config.num_kv_heads)
  splits.pop(0, None)
  # Sequence parallelism splits the residual stream between the branches too, by its length.
  splits.setdefault(model_config.embed_dim, plan.parts('residual_length') // plan.parts('length'))
  itemsize = _NARROW[config.precision.dtype]
  stacked = [(leaf.shape, plan.used_spec(axes, leaf.shape)) for leaf, axes, _ in problem.parameters if 'layers' in axes]
  used = sum(_elements(plan, spec, shape) for shape, spec in stacked)
  (repeats, *_), spec = stacked[0]
  share = plan.sharding(spec).shard_shape(stacked[0][0])[0] / repeats
  layers = share * sum(tower.stack.num_layers for tower in counting.towers(problem.model))
  return _Part(
    rows=shapes['tokens'].shape[0] / microbatches / plan.data_parallel_size,
    microbatches=microbatches,
    length_parts=plan.parts('length'),
    vocab_parts=plan.parts('vocab') if model_config.vocab_size % plan.parts('vocab') == 0 else 1,
    layers=layers,
    splits=splits,
    used_bytes=used * itemsize,
    itemsize=itemsize,
  )


@functools.lru_cache(maxsize=1024)
def _state(problem, plan) -> tuple[dict[str, int], int]:
  """Bytes of a device: of the state by kind, and of gradients."""
  held = layout.bytes_by_kind(layout.state_leaves(problem.state, problem.task.logical_axes, plan))
  return held, sum(
    _elements(plan, plan.gradient_spec(axes, leaf.shape), leaf.shape) * leaf.dtype.itemsize
    for leaf, axes, trained in problem.parameters
    if trained
  )


def _working(config, where, part, whole) -> float:
  """The largest of what a layer and the head hold for themselves while they are differentiated."""
  model_config = config.model
  layer_weights = part.used_bytes / part.layers
  wide = 4 / part.itemsize
  layer = layer_weights * (2 + wide)  # the next one's are gathered meanwhile; gradients before they are reduced
  if model_config.remat != 'none':
    layer += part.rows * whole.row_bytes(part.splits) / part.length_parts / part.layers
  table = model_config.vocab_size * model_config.embed_dim / part.vocab_parts
  logits = _LOGITS['tpu' if where.accelerator.torus else 'gpu']
  tokens = part.rows * config.data.sequence_length / part.length_parts
  vocab = model_config.vocab_size / part.vocab_parts
  chunk = min(max(logits, 1024 * vocab), tokens * vocab)
  head = table * (2 * part.itemsize + 4) + chunk * 8
  return max(layer, head)


def _executed(config, work: scaling.Work) -> float:
  """FLOPs that are done: passes that remat repeats, and attention by kernels that form probabilities again but skip
  what a causal mask or a window hides."""
  again = {'none': 0, 'selective': 0, 'full': 1}[config.model.remat]
  visible = 0.5 if config.objective.name == 'causal' else 1.0
  attention = 3.5 + (1 if config.model.remat != 'none' else 0)  # of backward's five products one is the forward's
  return work.weights * (3 + again) + work.attention * visible * attention


def _traffic(held, part, whole) -> float:
  """Bytes between a device and its memory: the update reads and writes state and gradients, each microbatch reads the
  gathered weights twice and moves what a layer forms: written once, read twice."""
  update = 2 * (held['parameters'] + held['optimizer'] + held['average']) + held['gradients']
  formed = part.rows * whole.row_bytes(part.splits) / part.length_parts
  return update + part.microbatches * (3 * part.used_bytes + 3 * formed)


def _sizes(config, problem, shapes) -> messages.Step:
  model_config = config.model
  numbers = {}
  for leaf, axes, _ in problem.parameters:
    key = 'experts' in axes, 'layers' in axes
    numbers[key] = numbers.get(key, 0) + math.prod(leaf.shape)
  towers = counting.towers(problem.model)
  layers = sum(tower.stack.num_layers for tower in towers)
  crossing = towers[-1].stack.num_layers if len(towers) > 1 else 0
  tokens = sum(math.prod(shapes[name].shape) for name in ('tokens', 'source_tokens') if name in shapes) / len(towers)
  return messages.Step(
    parameters=numbers,
    tokens=tokens,
    layers=layers,
    sublayers=2 * layers + crossing,
    embed_dim=model_config.embed_dim,
    kv_dim=2 * model_config.num_kv_heads * model_config.head_dim,
    expert_layers=sum(tower.expert_layers for tower in towers),
    experts_per_token=model_config.moe.experts_per_token,
    microbatches=config.optimizer.accumulation_steps,
    itemsize=_NARROW[config.precision.dtype],
    recomputed=int(model_config.remat == 'full'),
  )
