"""Causal attention on this CPU, forward and backward: blockwise against jax.nn and a plain einsum, interleaved.

`python -m benchmarks.attention_cpu`, 3 minutes, writes benchmarks/results/attention_cpu.{json,md}.
"""

import os
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import common
from pallas_kernels import AttentionSpec, attention

_SHAPES = {  # batch, length, heads, head_dim
  'S': (12, 64, 4, 32), 'M': (8, 256, 6, 64), 'L': (2, 512, 12, 64), 'T1024': (4, 1024, 8, 64),
  'T4096': (1, 4096, 8, 64),
}


def _einsum(q, k, v):
  logits = jnp.einsum('bqhd,bkhd->bhqk', q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
  visible = jnp.tril(jnp.ones(logits.shape[2:], bool))
  probabilities = jax.nn.softmax(jnp.where(visible, logits, -jnp.inf), axis=-1).astype(q.dtype)
  return jnp.einsum('bhqk,bkhd->bqhd', probabilities, v)


_IMPLEMENTATIONS = {
  'blockwise': lambda q, k, v: attention(q, k, v, AttentionSpec(causal=True), implementation='blockwise'),
  'jax.nn': lambda q, k, v: jax.nn.dot_product_attention(q, k, v, is_causal=True),
  'einsum': _einsum,
}


def interleave(programs: dict, inputs: tuple, seconds: float) -> dict:
  """Runs compiled programs in turn for some seconds.

  Returns:
    For each: `ms` (median wall time), `cpu_ms` (smallest processor time, which other processes disturb least) and
    `temporaries_mib`.
  """
  wall, processor = {name: [] for name in programs}, {name: [] for name in programs}
  for program in programs.values():
    jax.block_until_ready(program(*inputs))
  end, rounds = time.perf_counter() + seconds, 0
  while time.perf_counter() < end or rounds < 3:
    rounds += 1
    for name, program in programs.items():
      started = time.perf_counter(), time.process_time()
      jax.block_until_ready(program(*inputs))
      wall[name].append(1e3 * (time.perf_counter() - started[0]))
      processor[name].append(1e3 * (time.process_time() - started[1]))
  return {
    name: {
      'ms': float(np.median(wall[name])), 'cpu_ms': min(processor[name]),
      'temporaries_mib': program.memory_analysis().temp_size_in_bytes / 2**20,
    }
    for name, program in programs.items()
  }


def _measure(shape, dtype):
  random = np.random.default_rng(0)
  inputs = tuple(jnp.asarray(random.normal(size=shape), dtype) for _ in range(4))

  def step(function):
    def run(q, k, v, cotangent):
      out, backward = jax.vjp(function, q, k, v)
      return out, backward(cotangent)
    return jax.jit(run).lower(*inputs).compile()

  return interleave({name: step(function) for name, function in _IMPLEMENTATIONS.items()}, inputs, seconds=10)


def large_pages():
  """Starts this process again with large pages for malloc, as train.py does, unless it has them."""
  if os.environ.get('GLIBC_TUNABLES') != common.ENVIRONMENT['GLIBC_TUNABLES']:
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], common.ENVIRONMENT)


def main():
  large_pages()
  common.warn_if_busy()
  results = {f'{name} {dtype}': _measure(shape, dtype) for name, shape in _SHAPES.items()
             for dtype in ('float32', 'bfloat16')}
  rows = [
    [name, *(cells[x]['ms'] for x in _IMPLEMENTATIONS), cells['jax.nn']['ms'] / cells['blockwise']['ms'],
     cells['jax.nn']['cpu_ms'] / cells['blockwise']['cpu_ms'], *(cells[x]['temporaries_mib'] for x in _IMPLEMENTATIONS)]
    for name, cells in results.items()
  ]
  headers = ['case', *(f'{x} ms' for x in _IMPLEMENTATIONS), 'jax.nn / blockwise', 'the same in CPU time',
             *(f'{x} MiB' for x in _IMPLEMENTATIONS)]
  common.write('attention_cpu', {'shapes': _SHAPES, 'results': results}, common.markdown_table(headers, rows),
               'python -m benchmarks.attention_cpu')


if __name__ == '__main__':
  main()
