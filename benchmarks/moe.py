"""A layer of experts on this CPU, forward and backward: ours against `jax.lax.ragged_dot` and a dense feed-forward.

Each token passes two gated experts, whatever their number. `blocks` is the dropless layer, `capacity` the same with a
capacity factor of 1.25, `ragged_dot` the dropless layer on XLA's grouped product, `dense` a feed-forward as wide as two
experts: the same multiplications without router and sorting.

`python -m benchmarks.moe`, 8 minutes, writes benchmarks/results/moe.{json,md}.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import precision
from benchmarks import common, cpu
from configs import base
from model import Stream, Visibility, feed_forward, moe
from model.context import for_self_attention

_BATCH, _LENGTH, _EMBED, _MLP, _PER_TOKEN = 8, 256, 256, 768, 2


def _layers(num_experts):
  """For each contestant a function from x and its parameters to a loss, and the parameters."""
  contestants = {
    'blocks': {'implementation': 'blocks'},
    'capacity': {'capacity_factor': 1.25},
    'ragged_dot': {'implementation': 'ragged_dot'},
    'dense': None,
  }
  positions = jnp.broadcast_to(jnp.arange(_LENGTH), (_BATCH, _LENGTH))
  stream = Stream(positions, positions, jnp.ones_like(positions))
  context = for_self_attention(stream, Visibility.CAUSAL)
  layers = {}
  for name, changes in contestants.items():
    model_config = base.get_config().model
    model_config.embed_dim, model_config.mlp_dim = _EMBED, _MLP
    model_config.moe.update({'num_experts': num_experts, 'experts_per_token': _PER_TOKEN, 'mlp_dim': _MLP})
    rngs = nnx.Rngs(params=0)
    if changes is None:
      module = feed_forward.FeedForward('mlp', model_config, _PER_TOKEN * _MLP, rngs=rngs)
    else:
      model_config.moe.update(changes)
      module = moe.MoE('mlp', model_config, rngs=rngs)
    graph, params = nnx.split(module)
    layers[name] = _loss(graph, None if changes is None else context), params
  return layers


def _loss(graph, context):
  def loss(params, x, weight):
    module = nnx.merge(graph, params)
    y = module(x) if context is None else module(x, context, None)[0]
    return jnp.sum(y * weight)

  return loss


def _measure(num_experts, dtype, seconds):
  random = np.random.default_rng(0)
  x, weight = (jnp.asarray(random.normal(size=(_BATCH, _LENGTH, _EMBED)), jnp.float32) for _ in range(2))
  programs = {}
  for name, (loss, params) in _layers(num_experts).items():
    loss = precision.bf16(loss) if dtype == 'bfloat16' else loss
    compiled = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(params, x, weight).compile()
    programs[name] = _Bound(compiled, params)
  return cpu.interleave(programs, (x, weight), seconds)


class _Bound:
  """A compiled program with its parameters."""

  def __init__(self, compiled, params):
    self._compiled, self._params = compiled, params
    self.memory_analysis = compiled.memory_analysis

  def __call__(self, *inputs):
    return self._compiled(self._params, *inputs)


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--experts', type=int, nargs='+', default=[4, 8, 16, 32, 64], help='numbers of experts')
  parser.add_argument('--seconds', type=float, default=20, help='of each case')
  parser.add_argument('--dtypes', nargs='+', default=['float32', 'bfloat16'], help='of products')
  parser.add_argument('--dry', action='store_true', help='print the figures instead of writing them')
  arguments = parser.parse_args()
  cpu.large_pages()
  common.warn_if_busy()
  results = {}
  for dtype in arguments.dtypes:
    for num_experts in arguments.experts:
      name = f'{num_experts} experts, {dtype}'
      results[name] = _measure(num_experts, dtype, arguments.seconds)
      print(name, {program: round(figures['ms'], 1) for program, figures in results[name].items()}, flush=True)
  if not arguments.dry:
    shape = {'batch': _BATCH, 'length': _LENGTH, 'embed': _EMBED, 'mlp': _MLP, 'experts_per_token': _PER_TOKEN}
    cpu.write('moe', {'layer': shape}, results, ours='blocks', baseline='ragged_dot')


if __name__ == '__main__':
  main()
