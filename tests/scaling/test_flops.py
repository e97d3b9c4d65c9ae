"""FLOPs by arithmetic against those that XLA counts in the program, attention written out."""

import jax
import numpy as np
import pytest

import model as model_lib
from configs import base
from planning import setup
from training import counting

# Wide enough that what is no product of matrices (norms, softmax, the loss) is below the tolerance.
_SIZES = {
  'num_layers': 2,
  'embed_dim': 512,
  'num_heads': 4,
  'head_dim': 128,
  'vocab_size': 1024,
  'layer_loop': 'unroll',
}
_LENGTH, _ROWS = 256, 4
FAMILIES = {
  'gpt2': ('causal', {'positions': 'learned', 'max_length': _LENGTH, 'gated_mlp': False, 'use_bias': True}),
  'llama': ('causal', {'num_kv_heads': 2}),
  'mistral, local attention': ('causal', {'num_kv_heads': 2, 'attention.window': 64, 'attention.pattern': ('local',)}),
  'bert': ('masked', {'family': 'encoder', 'head_transform': True, 'norm': 'layernorm', 'gated_mlp': False}),
  't5': ('span_corruption', {'family': 'encoder_decoder', 'positions': 't5', 'start_token': 0}),
  'xlnet': ('permutation', {'positions': 'xlnet', 'gated_mlp': False}),
  'deepseek': (
    'causal',
    {'attention.latent.key_value_rank': 256, 'attention.latent.query_rank': 256, 'attention.latent.rotary_dim': 64},
  ),
  'mixtral': ('causal', {'moe.num_experts': 4, 'moe.experts_per_token': 2, 'moe.capacity_factor': 1.0}),
}


def _counted(name):
  objective, changes = FAMILIES[name]
  config = base.get_config()
  config.model.update(_SIZES | changes | {'attention.implementation': 'reference'})
  config.objective.name = objective
  config.data.update(sequence_length=_LENGTH, batch_tokens=_ROWS * _LENGTH)
  problem = setup.Problem.of(setup.resolve(config))
  batch = setup.batch_shapes(problem.row, _ROWS)
  gradient = jax.value_and_grad(lambda params, batch: problem.task.loss(params, batch, None), has_aux=True)
  params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), problem.state.params)
  counted = jax.jit(gradient).lower(params, batch).cost_analysis()['flops']
  return problem.model, batch, counted


@pytest.mark.parametrize('name', FAMILIES)
def test_the_exact_count_is_within_three_percent_of_the_compiler(name):
  model, batch, counted = _counted(name)
  expected = counting.step_flops(model, batch)
  if 'local' in name:  # written out, attention forms what the window hides too
    hidden = _LENGTH - model.config.attention.window
    expected += 3 * 2 * 2 * 4 * 128 * hidden * _LENGTH * _ROWS * 2
  assert counted == pytest.approx(expected, rel=0.03)


def test_six_nd_is_the_count_without_attention():
  model_config = base.get_config().model
  model_config.update(_SIZES)
  model = model_lib.create(model_config)
  counts, length = counting.parameters(model), 64
  norms = 5 * 512
  attention = 12 * 2 * 4 * 128 * length
  assert counting.flops_per_token(model, length) == 6 * (counts.total - norms) + attention


def test_parts_of_a_batch_are_counted_as_they_are():
  """A T5 whose targets are shorter than its sources takes less than one whose are as long."""
  config = base.get_config()
  config.model.update(_SIZES | {'family': 'encoder_decoder', 'positions': 't5', 'start_token': 0})
  model = model_lib.create(config.model)
  shape = lambda length: jax.ShapeDtypeStruct((2, length), np.int32)
  short = counting.step_flops(model, {'source_tokens': shape(128), 'tokens': shape(32)})
  equal = counting.step_flops(model, {'source_tokens': shape(128), 'tokens': shape(128)})
  assert equal == 2 * 128 * counting.flops_per_token(model, 128)
  assert short < 0.7 * equal
