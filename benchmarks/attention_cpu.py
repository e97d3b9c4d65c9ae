"""Causal attention on this CPU, forward and backward: blockwise against jax.nn and a plain einsum, interleaved.

`python -m benchmarks.attention_cpu`, 3 minutes, writes benchmarks/results/attention_cpu.{json,md}.
"""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import common, cpu
from pallas_kernels import AttentionSpec, attention

_SHAPES = {  # batch, length, heads, head_dim
  'S': (12, 64, 4, 32),
  'M': (8, 256, 6, 64),
  'L': (2, 512, 12, 64),
  'T1024': (4, 1024, 8, 64),
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


def _measure(shape, dtype):
  random = np.random.default_rng(0)
  inputs = tuple(jnp.asarray(random.normal(size=shape), dtype) for _ in range(4))

  def step(function):
    def run(q, k, v, cotangent):
      out, backward = jax.vjp(function, q, k, v)
      return out, backward(cotangent)

    return jax.jit(run).lower(*inputs).compile()

  return cpu.interleave({name: step(function) for name, function in _IMPLEMENTATIONS.items()}, inputs, seconds=10)


def main():
  cpu.large_pages()
  common.warn_if_busy()
  results = {
    f'{name} {dtype}': _measure(shape, dtype) for name, shape in _SHAPES.items() for dtype in ('float32', 'bfloat16')
  }
  cpu.write('attention_cpu', _SHAPES, results, ours='blockwise', baseline='jax.nn')


if __name__ == '__main__':
  main()
