"""Counts agree with the figures that were published."""

import pytest

import model as model_lib
import scaling
from configs import base
from training import counting

GB = 1e9


def test_zero_on_7_5_billion_parameters_and_64_devices():
  """Rajbhandari et al. 2020, figure 1: 120, 31.4, 16.6 and 1.9 GB."""
  totals = [scaling.model_states(7.5e9, stage, 64, scaling.MIXED_ADAM).total / GB for stage in range(4)]
  assert [round(total, 1) for total in totals] == [120.0, 31.4, 16.6, 1.9]


def test_four_bytes_a_parameter_and_twenty_more_to_train_it():
  assert scaling.common_rule(1e9) == (4e9, 20e9)
  assert scaling.model_states(1e9, 0, 1).total == 16e9


@pytest.mark.parametrize('stage', range(4))
def test_a_stage_splits_what_it_names(stage):
  whole, split = scaling.model_states(1e6, 0, 8), scaling.model_states(1e6, stage, 8)
  assert split.optimizer == whole.optimizer / (8 if stage >= 1 else 1)
  assert split.gradients == whole.gradients / (8 if stage >= 2 else 1)
  assert split.parameters == whole.parameters / (8 if stage >= 3 else 1)


class TestActivations:
  """Korthikanti et al. 2022, table 2, for their model of 22B: s 2048, b 4, h 6144, a 64, t 8."""

  s, b, h, a, t = 2048, 4, 6144, 64, 8

  def bytes(self, **options):
    return scaling.activation_bytes_per_layer(self.s, self.b, self.h, self.a, **options)

  def test_without_parallelism(self):
    assert self.bytes() == self.s * self.b * self.h * (34 + 5 * self.a * self.s / self.h)

  def test_tensor_parallelism_leaves_ten_bytes_whole(self):
    expected = self.s * self.b * self.h * (10 + 24 / self.t + 5 * self.a * self.s / (self.h * self.t))
    assert self.bytes(tensor=self.t) == pytest.approx(expected)

  def test_sequence_parallelism_splits_everything(self):
    assert self.bytes(tensor=self.t, sequence_parallel=True) == pytest.approx(self.bytes() / self.t)

  def test_selective_recomputation_drops_the_square_of_the_length(self):
    sbh = self.s * self.b * self.h
    assert self.bytes(recompute='selective') == sbh * 34
    assert self.bytes(tensor=self.t, recompute='selective') == pytest.approx(sbh * (10 + 24 / self.t))
    both = self.bytes(tensor=self.t, sequence_parallel=True, recompute='selective')
    assert both == pytest.approx(sbh * 34 / self.t)

  def test_full_recomputation_keeps_the_input(self):
    assert self.bytes(recompute='full') == 2 * self.s * self.b * self.h

  def test_both_together_save_a_factor_of_five(self):
    """Section 6.1: sequence parallelism and selective recomputation together need less than a fifth of tensor
    parallelism alone."""
    both = self.bytes(tensor=self.t, sequence_parallel=True, recompute='selective')
    assert both < self.bytes(tensor=self.t) / 4.5

  def test_a_recomputation_that_does_not_exist_is_refused(self):
    with pytest.raises(ValueError, match="recompute='some' does not exist"):
      self.bytes(recompute='some')


def gpt3():
  """Brown et al. 2020, table 2.1."""
  model_config = base.get_config().model
  model_config.update(
    vocab_size=50257, num_layers=96, embed_dim=12288, num_heads=96, mlp_dim=49152, max_length=2048, positions='learned',
    norm='layernorm', gated_mlp=False, use_bias=True,
  )  # fmt: skip
  return model_lib.create(model_config)


def test_gpt3_has_175_billion_parameters_and_3640_petaflops_days():
  """Brown et al. 2020, table D.1: 3.14e23 FLOPs by 6 N D, 3,640 petaFLOP/s-days."""
  model, tokens = gpt3(), 300e9
  counts = counting.parameters(model)
  assert counts.total == pytest.approx(174.6e9, rel=2e-3)
  flops = scaling.six_nd(counts.total, tokens)
  assert flops == pytest.approx(3.14e23, rel=5e-3)
  assert scaling.petaflops_days(flops) == pytest.approx(3640, rel=5e-3)
  # Attention at 2,048 tokens and the rest of the exact count add 3 %.
  assert counting.flops_per_token(model, 2048) * tokens == pytest.approx(flops, rel=0.04)


def test_mixtral_passes_12_9_of_46_7_billion():
  """Jiang et al. 2024, section 1: 13B active of 47B."""
  counts = counting.parameters(model_lib.create(model_lib.families.preset('mixtral:8x7b')))
  assert counts.total == pytest.approx(46.7e9, rel=1e-3)
  assert counts.active == pytest.approx(12.9e9, rel=1e-2)
  assert counts.embedding == 2 * 32000 * 4096
