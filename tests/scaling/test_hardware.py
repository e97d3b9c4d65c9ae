"""The table of accelerators."""

import pytest

import scaling
import scaling.hardware


@pytest.mark.parametrize('accelerator', scaling.ACCELERATORS, ids=lambda accelerator: accelerator.name)
def test_every_accelerator_has_its_sources_and_plausible_figures(accelerator):
  assert accelerator.sources and all(accelerator.sources)
  assert 1e14 < accelerator.bfloat16 < 1e16
  assert accelerator.int8 is None or 1 <= accelerator.int8 / accelerator.bfloat16 <= 2.01
  assert accelerator.fp8 is None or 1 <= accelerator.fp8 / accelerator.bfloat16 <= 2.01
  assert accelerator.memory_bandwidth > accelerator.link_bandwidth > (accelerator.network_bandwidth or 0)


def test_the_accelerators_that_plans_are_made_for_are_there():
  named = {accelerator.name for accelerator in scaling.ACCELERATORS}
  assert named >= {'v5e', 'v5p', 'v6e', 'tpu7x', 'a100', 'h100', 'h200', 'b200'}


@pytest.mark.parametrize(
  'kind, name',
  [
    ('TPU v5 lite', 'v5e'),
    ('TPU v5', 'v5p'),
    ('TPU v5p', 'v5p'),
    ('TPU v6 lite', 'v6e'),
    ('NVIDIA H100 80GB HBM3', 'h100'),
    ('NVIDIA H100 PCIe', 'h100-pcie'),
    ('NVIDIA GH200 480GB', 'h200'),
  ],
)
def test_a_device_is_known_by_its_kind(kind, name):
  assert scaling.hardware.of_kind(kind).name == name


def test_a_device_of_a_chip_that_shows_two_has_half_of_everything():
  chip = scaling.hardware.named('tpu7x')
  assert chip.device.bfloat16 == chip.bfloat16 / 2 and chip.device.memory_bytes == chip.memory_bytes // 2
  assert scaling.hardware.named('v5e').device == scaling.hardware.named('v5e')


def test_an_unknown_name_is_told_with_those_that_there_are():
  with pytest.raises(ValueError, match="no accelerator 'v9'; there are v4, v5e"):
    scaling.hardware.named('v9')
