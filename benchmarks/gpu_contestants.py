"""What attention_gpu times: our kernels, fused and not, cuDNN through JAX, JAX's own example, tokamax, PyTorch."""

import contextlib
import dataclasses
import functools

import jax
import jax.numpy as jnp

from benchmarks import gpu
from pallas_kernels import AttentionSpec, attention
from pallas_kernels.hopper import tuning

PASSES = ('forward', 'both')
_SETS = 2  # of inputs, taken in turn
_TOKENS = 32768
_LENGTHS = (4096, 16384, 8192, 2048, 1024, 32768)  # by importance: the published figures are of the first two


@dataclasses.dataclass(frozen=True)
class Cell:
  """Self-attention of one shape: batch rows of `length` tokens, the product being the same in all cells."""

  head_dim: int
  length: int
  causal: bool
  heads: int
  kv_heads: int
  batch: int

  @property
  def name(self) -> str:
    mask = 'causal' if self.causal else 'full'
    return f'D{self.head_dim} {mask} {self.heads}/{self.kv_heads} T{self.length}'

  def flops(self, direction: str) -> float:
    """FLOPs of 'forward' or 'backward' as FlashAttention's papers count them, in halves for causal masks."""
    full = 4 * self.batch * self.heads * self.length**2 * self.head_dim
    return full * (0.5 if self.causal else 1) * {'forward': 1, 'backward': 2.5}[direction]

  def bytes(self, direction: str) -> int:
    """Bytes of the 16-bit arrays that are read and written at least once."""
    q, k = (self.batch * self.length * heads * self.head_dim * 2 for heads in (self.heads, self.kv_heads))
    return {'forward': 2 * q + 2 * k, 'backward': 4 * q + 4 * k}[direction]

  def shapes(self) -> tuple:
    """Shapes of q, k, v and the output's cotangent."""
    q, k = ((self.batch, self.length, heads, self.head_dim) for heads in (self.heads, self.kv_heads))
    return q, k, k, q


def cells(dry_run: bool) -> list[Cell]:
  """All cells, the most important ones first."""
  if dry_run:
    return [
      Cell(head_dim, length, causal, 2, kv_heads, 256 // length)
      for length in (128, 256)
      for head_dim, causal, kv_heads in ((128, True, 2), (64, True, 2), (128, False, 1))
    ]
  wide, grouped = (16, 16), (32, 8)
  first = [(128, True, wide), (64, True, wide), (128, False, wide), (64, False, wide)]
  rest = [
    (128, True, grouped),
    (256, True, (8, 8)),
    (64, True, grouped),
    (128, False, grouped),
    (256, True, (16, 4)),
    (256, False, (8, 8)),
    (64, False, grouped),
    (256, False, (16, 4)),
  ]
  order = [(kind, _LENGTHS[:2]) for kind in first] + [(kind, _LENGTHS[2:]) for kind in first]
  order += [(kind, _LENGTHS[:2]) for kind in rest] + [(kind, _LENGTHS[2:]) for kind in rest]
  return [
    Cell(head_dim, length, causal, *heads, _TOKENS // length)
    for (head_dim, causal, heads), lengths in order
    for length in lengths
  ]


@dataclasses.dataclass(frozen=True)
class Contestant:
  """An implementation of attention.

  Attributes:
    prepare: `prepare(cell, which) -> finish` of 'forward' or 'both' (forward and backward); `finish() -> run` may be
      called in another thread, and `run(i)` starts call number i. Either raises where the cell is not served.
    wait: returns when the device has finished what `run` returned.
    dtype: of its inputs, where JAX gives its results, which then are compared with `gpu_checks.definition`.
    scale: of the logits, as in AttentionSpec.
    ours: whether it is this project's, whose results must be the same in every call.
    forward: of which contestant the forward pass is; None = its own.
  """

  prepare: object
  wait: object = jax.block_until_ready
  dtype: object = None
  scale: float | None = None
  ours: bool = False
  forward: str | None = None

  @property
  def passes(self) -> tuple[str, ...]:
    return PASSES if self.forward is None else PASSES[1:]


def program_name(entrant: str, which: str, cell: str) -> str:
  """What a worker says it is doing while it traces or first runs a contestant's program of one of PASSES in a cell."""
  return f'{entrant}, {which} in {cell}'


def ours(dry_run: bool) -> str:
  """The implementation of `pallas_kernels` that stands for this project."""
  return 'blockwise' if dry_run else 'hopper'


def contestants(implementation: str) -> dict[str, Contestant]:
  """All by name; this project's with the given implementation, see `ours`."""
  of_jax = lambda attend, dtype, **fields: Contestant(
    functools.partial(_prepare_jax, attend, dtype), dtype=dtype, **fields
  )
  return {
    'ours': of_jax(functools.partial(_attention, implementation), jnp.bfloat16, ours=True),
    'ours, unfused': Contestant(_prepare_unfused, dtype=jnp.bfloat16, ours=True, forward='ours'),
    'cudnn': of_jax(functools.partial(_attention, 'cudnn'), jnp.bfloat16),
    'torch flash': Contestant(functools.partial(_prepare_torch, 'FLASH_ATTENTION'), _wait_torch),
    'torch cudnn': Contestant(functools.partial(_prepare_torch, 'CUDNN_ATTENTION'), _wait_torch),
    'jax mgpu': of_jax(_mgpu, jnp.float16, scale=1.0),
    'tokamax': of_jax(_tokamax, jnp.bfloat16),
  }


def program(attend, cell: Cell, which: str):
  """The function of q, k, v and a cotangent: `attend(cell, q, k, v)`, or it and the gradients of q, k and v."""
  attend = functools.partial(attend, cell)
  if which == 'forward':
    return lambda q, k, v, cotangent: attend(q, k, v)

  def both(q, k, v, cotangent):
    out, backward = jax.vjp(attend, q, k, v)
    return out, backward(cotangent)

  return both


def _attention(implementation, cell, q, k, v):
  return attention(q, k, v, AttentionSpec(causal=cell.causal), implementation=implementation)


ours_on_hopper = functools.partial(_attention, 'hopper')


def _prepare_unfused(cell, which):
  """Ours with a kernel of its own for the gradient of q, to tell where one kernel for all gradients wins."""
  if not fused(cell):
    raise ValueError('no different from ours')
  with unfused(cell.head_dim):
    return _prepare_jax(ours_on_hopper, jnp.bfloat16, cell, which)


def fused(cell: Cell) -> bool:
  """Whether ours gives the gradients of q, k and v in one kernel, and that of q in no fixed order of sums."""
  return tuning.KEYS[cell.head_dim].fused


@contextlib.contextmanager
def unfused(head_dim: int):
  """Context in which the gradient of q is traced as a kernel of its own."""
  sizes = tuning.KEYS[head_dim]
  tuning.KEYS[head_dim] = dataclasses.replace(sizes, fused=False)
  try:
    yield
  finally:
    tuning.KEYS[head_dim] = sizes


def _mgpu(cell, q, k, v):
  from jax.experimental.pallas.ops.gpu import attention_mgpu

  block_kv = 128 if cell.head_dim <= 128 else 64
  config = attention_mgpu.TuningConfig(
    block_q=64,
    block_kv=block_kv,
    max_concurrent_steps=2,
    causal=cell.causal,
    block_q_dkv=64,
    block_kv_dkv=64,
    block_q_dq=64,
    block_kv_dq=64,
  )
  return attention_mgpu.attention(q, k, v, config)


def _tokamax(cell, q, k, v):
  import tokamax

  return tokamax.dot_product_attention(q, k, v, is_causal=cell.causal, implementation='mosaic')


@functools.lru_cache(maxsize=2)
def inputs(shapes, dtype) -> list:
  """The sets of q, k, v and cotangent that calls take in turn."""
  return [[gpu.normal(shape, dtype, 10 * n + i) for i, shape in enumerate(shapes)] for n in range(_SETS)]


def _prepare_jax(attend, dtype, cell, which):
  structs = [jax.ShapeDtypeStruct(shape, dtype) for shape in cell.shapes()]
  lowered = jax.jit(program(attend, cell, which), keep_unused=True).lower(*structs)

  def finish():
    compiled = lowered.compile()
    return lambda i: compiled(*inputs(cell.shapes(), dtype)[i % _SETS])

  return finish


@functools.lru_cache(maxsize=1)
def _torch_inputs(shapes):
  import torch

  # Heads before tokens, as PyTorch has them, in memory that has them after, as its own projections leave it.
  make = lambda shape: torch.randn(shape, dtype=torch.bfloat16, device='cuda').transpose(1, 2).requires_grad_()
  return [[make(shape) for shape in shapes] for _ in range(_SETS)]


def _prepare_torch(backend, cell, which):
  import torch
  from torch.nn import attention as backends

  if not torch.cuda.is_available():
    raise RuntimeError('PyTorch sees no GPU')
  chosen = getattr(backends.SDPBackend, backend)

  def run(i):
    q, k, v, cotangent = _torch_inputs(cell.shapes())[i % _SETS]
    with backends.sdpa_kernel(chosen), torch.set_grad_enabled(which == 'both'):
      out = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, is_causal=cell.causal, enable_gqa=cell.heads != cell.kv_heads
      )
      return torch.autograd.grad(out, (q, k, v), cotangent) if which == 'both' else out

  return lambda: run


def _wait_torch(result):
  import torch

  torch.cuda.synchronize()
