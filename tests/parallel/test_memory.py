"""What a ZeRO stage splits is split in the compiled step, and whole before it (Rajbhandari et al. 2020, figure 1)."""

import math

import jax
import pytest
from harness import cells

DEVICES = 8
# Many parameters, few tokens: what is kept for the backward pass is small beside a gradient.
_PROBE = {
  'model__embed_dim': 64,
  'model__mlp_dim': 2048,
  'model__num_layers': 16,
  'model__num_heads': 1,
  'model__num_kv_heads': 1,
  'model__dropout_rate': 0.0,
  'model__attention__dropout_rate': 0.0,
  'optimizer__ema_decay': 0.9,
}


def _memory(stage, **mesh_sizes):
  """Bytes of the parameters, of the step's arguments on a device without its batch, and of its temporaries."""
  built = cells.build('decoder', zero_stage=stage, **_PROBE, **mesh_sizes)
  rows = cells.batch(built, 0)
  analysis = built.step.lower(built.abstract_state, rows).compile().memory_analysis()
  params = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(built.abstract_state.params))
  of_rows = sum(array.nbytes for array in rows.values()) // DEVICES
  return params, analysis.argument_size_in_bytes - of_rows, analysis.temp_size_in_bytes


# Arrays of the parameters' size that a device keeps: itself, two moments and the moving average.
@pytest.mark.parametrize('stage, kept', [(0, 4), (1, 1 + 3 / DEVICES), (2, 1 + 3 / DEVICES), (3, 4 / DEVICES)])
def test_parameters_moments_and_averages_are_divided_from_their_stage_on(stage, kept):
  state = cells.build('decoder', zero_stage=stage, mesh__fsdp=DEVICES, **_PROBE).abstract_state
  params = sum(leaf.size for leaf in jax.tree.leaves(state.params))
  on_a_device = sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in jax.tree.leaves(state) if leaf.ndim)
  assert on_a_device == kept * params


@pytest.fixture(scope='module')
def measured():
  return {stage: _memory(stage, mesh__fsdp=DEVICES) for stage in (0, 1, 2, 3)}


@pytest.mark.slow
def test_the_compiled_step_takes_what_its_stage_says(measured):
  for stage, kept in ((0, 4), (1, 1 + 3 / DEVICES), (2, 1 + 3 / DEVICES), (3, 4 / DEVICES)):
    params, arguments, _ = measured[stage]
    assert arguments - kept * params == pytest.approx(0, abs=64), stage  # two counters of updates


@pytest.mark.slow
def test_gradients_are_whole_before_stage_2_and_divided_from_it_on(measured):
  params, temporaries = measured[0][0], {stage: sizes[2] for stage, sizes in measured.items()}
  divided = params * (1 - 1 / DEVICES)
  assert temporaries[1] - temporaries[2] == pytest.approx(divided, rel=0.03)
  assert temporaries[1] - temporaries[3] == pytest.approx(divided, rel=0.03)
  # At stage 0 the compiler may form updates in place of gradients, but these are whole too.
  assert temporaries[0] > 0.97 * params and temporaries[1] > 0.97 * params


@pytest.mark.slow
def test_hybrid_sharding_divides_by_its_group_alone():
  params, arguments, _ = _memory(3, mesh__data=2, mesh__fsdp=DEVICES // 2)
  assert arguments == pytest.approx(4 * params / (DEVICES // 2), abs=64)
