"""Attention on the GPU against its definition in float32 on the CPU: outputs, lse and every gradient, by feature.

Each case is up to three programs: the forward pass; it and all gradients, that of q by a kernel of its own; and the
same with one kernel for the gradients of q, k and v, where there is one. Each runs several times.
"""

import contextlib
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import gpu_checks, gpu_contestants
from pallas_kernels import AttentionSpec, attention
from pallas_kernels.hopper import tuning

# ||got - want|| / ||want||. What a 16-bit result and 16-bit probabilities cost is 2^-9 and 2^-12 a number; gradients
# round twice more. lse is a float32 sum of exact products.
_TOLERANCES = {
  'bfloat16': {'out': 0.006, 'lse': 0.001, 'gradient': 0.015},
  'float16': {'out': 0.001, 'lse': 0.001, 'gradient': 0.002},
}
_LEARNED = ('bias', 'alibi_slopes', 'sinks')


@dataclasses.dataclass(frozen=True)
class Case:
  """A call: sizes, the static fields of its spec, and which arrays it has besides q, k and v."""

  name: str
  static: dict = dataclasses.field(hash=False)
  arrays: tuple = ()
  head_dim: int = 128
  heads: int = 4
  kv_heads: int = 4
  q_len: int = 384
  kv_len: int = 384
  batch: int = 2
  dtype: str = 'bfloat16'


_CAUSAL = {'causal': True}
CASES = (
  Case('causal', _CAUSAL),
  Case('full, grouped heads, head_dim 64', {}, head_dim=64, kv_heads=2),
  Case('causal, grouped heads, ragged length, head_dim 96', _CAUSAL, head_dim=96, kv_heads=1, q_len=333, kv_len=333),
  Case('full, float16', {}, dtype='float16'),
  Case('causal, float16, head_dim 64', _CAUSAL, dtype='float16', head_dim=64),
  Case('causal, head_dim 192', _CAUSAL, head_dim=192, kv_heads=2),
  Case('causal, head_dim 256', _CAUSAL, head_dim=256, kv_heads=2),
  Case('segments', _CAUSAL, ('segment_ids',), kv_heads=2),
  Case('window', {'causal': True, 'window': 100}, head_dim=64),
  Case('softcap', {'causal': True, 'softcap': 20.0}),
  Case('sinks', _CAUSAL, ('sinks',)),
  Case('bias', _CAUSAL, ('bias',)),
  Case('row bias', {}, ('row_bias',)),
  Case('alibi', _CAUSAL, ('alibi_slopes',)),
  Case('dropout', {'causal': True, 'dropout_rate': 0.2}, ('dropout_seed',), head_dim=64),
  Case('orders, fewer queries than keys', {}, ('order',), q_len=130, kv_len=400, kv_heads=2),
  Case('causal, 4,096 tokens', _CAUSAL, heads=2, kv_heads=1, q_len=4096, kv_len=4096, batch=1),
  Case('segments, 4,096 tokens, head_dim 64', _CAUSAL, ('segment_ids',), 64, 2, 2, 4096, 4096, 1),
  Case('full, 1,000 queries, 4,099 keys', {}, heads=2, kv_heads=1, q_len=1000, kv_len=4099),
  Case('dropout, 4,096 tokens', {'causal': True, 'dropout_rate': 0.1}, ('dropout_seed',), 128, 2, 1, 4096, 4096, 1),
  Case('decoding, 1 query, 8,192 keys', _CAUSAL, kv_heads=1, q_len=1, kv_len=8192),
  Case('decoding, 5 queries, 3,333 keys, sinks', {'causal': True, 'window': 2000}, ('sinks',), 64, 8, 2, 5, 3333),
  Case(
    'everything',
    {'causal': True, 'window': 200, 'softcap': 30.0, 'dropout_rate': 0.1},
    ('segment_ids', 'order', 'bias', 'alibi_slopes', 'sinks', 'dropout_seed'),
    kv_heads=2,
    q_len=301,
    kv_len=301,
  ),
)


VARIANTS = ('forward', 'unfused', 'fused')


def items(dry_run: bool) -> dict:
  """What is compared: case and variant by name. For a dry run a few short cases, which tell that the code works."""
  cases = [_shrunk(case) for case in CASES[::8]] if dry_run else CASES
  return {
    f'{case.name} ({variant})': (case, variant)
    for case in cases
    for variant in VARIANTS
    if variant != 'fused' or _sizes(case).fused
  }


def _shrunk(case):
  lengths = {name: min(getattr(case, name), 400) for name in ('q_len', 'kv_len')}
  return dataclasses.replace(case, **lengths)


def _sizes(case):
  spec = AttentionSpec(
    **case.static,
    **{name: True for name in case.arrays if name in ('bias', 'alibi_slopes')},
    **({'bias': True} if 'row_bias' in case.arrays else {}),
  )
  return tuning.sizes(spec, case.head_dim, case.q_len)[2]


def arguments(case: Case) -> tuple[dict, dict]:
  """What the outputs are differentiated by, and the rest: segments, orders, the seed, cotangents. NumPy arrays."""
  random = np.random.default_rng(0)
  normal = lambda *shape: random.normal(size=shape).astype(np.float32)
  q_shape = (case.batch, case.q_len, case.heads, case.head_dim)
  k_shape = (case.batch, case.kv_len, case.kv_heads, case.head_dim)
  learned = {
    name: normal(*shape).astype(jnp.dtype(case.dtype))
    for name, shape in (('q', q_shape), ('k', k_shape), ('v', k_shape))
  }
  fixed = {'d_out': normal(*q_shape).astype(jnp.dtype(case.dtype)), 'd_lse': normal(*q_shape[:3])}
  if 'bias' in case.arrays:
    learned['bias'] = normal(1, case.heads, case.q_len, case.kv_len)
  if 'row_bias' in case.arrays:
    learned['bias'] = normal(case.batch, 1, 1, case.kv_len)
  if 'alibi_slopes' in case.arrays:
    learned['alibi_slopes'] = 0.5 ** np.arange(1, case.heads + 1, dtype=np.float32)
  if 'sinks' in case.arrays:
    learned['sinks'] = 2 * normal(case.heads)
  if 'dropout_seed' in case.arrays:
    fixed['dropout_seed'] = np.uint32(7)
  if 'segment_ids' in case.arrays:  # three documents and padding at the end
    ids = np.minimum(np.arange(case.kv_len) * 4 // case.kv_len, 3)
    fixed['kv_segment_ids'] = np.tile((1 + ids) % 4, (case.batch, 1)).astype(np.int32)
    fixed['q_segment_ids'] = fixed['kv_segment_ids'][:, -case.q_len :]
  if 'order' in case.arrays:  # slots of a cache, filled from the second on
    fixed['kv_order'] = np.tile(np.roll(np.arange(case.kv_len), 1), (case.batch, 1)).astype(np.int32)
    fixed['q_order'] = fixed['kv_order'][:, -case.q_len :]
  return learned, fixed


def _evaluate(case, implementation, variant, learned, fixed):
  """Output and lse (0 where nothing is seen), and but for 'forward' gradients, by name."""
  fields = {name: x for name, x in fixed.items() if not name.startswith('d_')}

  def run(learned):
    spec = AttentionSpec(**case.static, **fields, **{name: learned[name] for name in _LEARNED if name in learned})
    return attention(learned['q'], learned['k'], learned['v'], spec, implementation=implementation, return_lse=True)

  (out, lse), backward = (run(learned), None) if variant == 'forward' else jax.vjp(run, learned)
  sees = jnp.isfinite(lse)
  found = {'out': out, 'lse': jnp.where(sees, lse, 0)}
  if backward is None:
    return found
  (gradients,) = backward((fixed['d_out'].astype(out.dtype), jnp.where(sees, fixed['d_lse'], 0)))
  return found | {f'gradient of {name}': g for name, g in gradients.items()}


def prepare(name: str, case: Case, variant: str, implementation: str):
  """Traces a program; returns `compile()`, for any thread, which returns `check(say, repeats, seconds) -> record`.

  The record holds by name of the result the distance from float32 and the largest one from call to call (None: not
  finite), and whether it passed, or in words why not. `say` is told, before it runs, that it may take `seconds`.
  """
  learned, fixed = arguments(case)
  with gpu_contestants.unfused(case.head_dim) if variant == 'unfused' else contextlib.nullcontext():
    lowered = jax.jit(functools.partial(_evaluate, case, implementation, variant)).lower(learned, fixed)

  def finish():
    compiled = lowered.compile()
    return functools.partial(_check, name, case, variant, lambda: compiled(learned, fixed))

  return finish


@functools.lru_cache(maxsize=1)
def _expected(case):
  learned, fixed = arguments(case)
  cpu = jax.local_devices(backend='cpu')[0]
  wide = {name: np.asarray(x, np.float32) for name, x in learned.items()}
  with jax.default_device(cpu):
    return jax.device_get(jax.jit(functools.partial(_evaluate, case, 'reference', 'both'))(wide, fixed))


def _check(name, case, variant, run, say, repeats, seconds):
  say(f'the definition of {name}')
  want = _expected(case)
  say(name, seconds)
  first = jax.block_until_ready(run())
  distances, moved = gpu_checks.distances(first, want), gpu_checks.moved(run, first, repeats)
  tolerances = {name: _TOLERANCES[case.dtype]['gradient' if name.startswith('gradient') else name] for name in first}
  may_move = {'gradient of q': gpu_checks.MAY_MOVE[case.dtype]} if variant == 'fused' else {}
  faults = gpu_checks.faults(distances, tolerances, moved, may_move)
  return {'passed': not faults, 'faults': faults, 'distances': distances, 'moved': moved}
