"""Peaks are those of the data sheets, or measured on a CPU."""

import dataclasses
import json

import jax
import pytest

from training import hardware


@dataclasses.dataclass
class Device:
  device_kind: str
  platform: str = 'gpu'


@pytest.mark.parametrize(
  'kind, tera',
  [
    ('NVIDIA H100 80GB HBM3', 989.4),
    ('NVIDIA H100 PCIe', 756),
    ('NVIDIA H200', 989.4),
    ('NVIDIA A100-SXM4-80GB', 312),
    ('TPU v4', 275),
    ('TPU v5 lite', 197),
    ('TPU v5e', 197),
    ('TPU v5', 459),
    ('TPU v5p', 459),
    ('TPU v6 lite', 918),
    ('TPU v6e', 918),
  ],
)
def test_published_peaks_count_every_device(kind, tera):
  assert hardware.peak_flops([Device(kind)] * 4, 'bfloat16') == pytest.approx(4 * tera * 1e12)


def test_an_unknown_accelerator_has_no_peak():
  assert hardware.peak_flops([Device('Abacus 1')], 'float32') is None


def test_a_cpu_is_measured_once_however_many_devices_simulate_it():
  peak = hardware.peak_flops(jax.devices(), 'float32')
  assert 1e9 < peak < 1e14
  assert hardware.peak_flops(jax.devices()[:1], 'float32') == peak


def test_describe_is_json_and_names_machine_and_versions():
  described = hardware.describe()
  assert json.loads(json.dumps(described)) == described
  assert described['jax'] == jax.__version__ and described['cores'] >= 1 and described['cpu']
