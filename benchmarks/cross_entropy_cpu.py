"""Head and cross-entropy on this CPU, loss and gradients: fused against logits, logsumexp and gather.

`python -m benchmarks.cross_entropy_cpu`, 2 minutes, writes benchmarks/results/cross_entropy_cpu.{json,md}.
"""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import common, cpu
from pallas_kernels import linear_cross_entropy

_SHAPES = {  # batch, length, embed, vocab
  'S': (12, 64, 128, 65),
  'M': (8, 256, 384, 65),
  'quickstart': (16, 256, 256, 4096),
  'L': (2, 512, 768, 50304),
}


def _plain(hidden, kernel, labels):
  logits = jnp.einsum('bld,vd->blv', hidden, kernel.astype(hidden.dtype), preferred_element_type=jnp.float32)
  picked = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
  return jnp.sum(jax.nn.logsumexp(logits, axis=-1) - picked)


_IMPLEMENTATIONS = {'fused': lambda *inputs: linear_cross_entropy(*inputs).total, 'plain': _plain}


def _measure(shape, dtype):
  batch, length, embed, vocab = shape
  random = np.random.default_rng(0)
  inputs = (
    jnp.asarray(random.normal(size=(batch, length, embed)), dtype),
    jnp.asarray(random.normal(size=(vocab, embed)) * 0.05, jnp.float32),
    jnp.asarray(random.integers(0, vocab, (batch, length)), jnp.int32),
  )
  programs = {
    name: jax.jit(jax.value_and_grad(function, (0, 1))).lower(*inputs).compile()
    for name, function in _IMPLEMENTATIONS.items()
  }
  return cpu.interleave(programs, inputs, seconds=10)


def main():
  cpu.large_pages()
  common.warn_if_busy()
  results = {
    f'{name} {dtype}': _measure(shape, dtype) for name, shape in _SHAPES.items() for dtype in ('float32', 'bfloat16')
  }
  cpu.write('cross_entropy_cpu', _SHAPES, results, ours='fused', baseline='plain')


if __name__ == '__main__':
  main()
