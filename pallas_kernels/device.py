"""The device that kernels are chosen, tuned and compiled for."""

import dataclasses
import functools
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Device:
  """One kind of device, and whether kernels are simulated instead of compiled.

  Attributes:
    platform: 'cpu', 'gpu' or 'tpu'.
    kind: the vendor's name, as `jax.Device.device_kind`: 'NVIDIA H200', 'TPU v5 lite'.
    interpret: passed on as `interpret` to Pallas: False compiles the kernel; True, or parameters of an interpreter
      (hashable), run it on whatever computes, slowly, for tests.
  """

  platform: str
  kind: str = ''
  interpret: Any = False

  @classmethod
  def of(cls, device: jax.Device, interpret: Any = False) -> 'Device':
    """The kind of an attached device or of one of a topology that is compiled for without being there."""
    platform = {'cuda': 'gpu', 'rocm': 'gpu'}.get(device.platform.lower(), device.platform.lower())
    return cls(platform, device.device_kind, interpret)


_TARGET = jax.make_user_context(default_value=None)


def target(device: Device):
  """Context in which attention is traced for `device` instead of JAX's default one: simulated or ahead of time."""
  return _TARGET(device)


def current() -> Device:
  """The target of the context, or else the default device of JAX."""
  return _TARGET.value or _default(jax.config.jax_default_device)


@functools.cache
def _default(chosen) -> Device:
  if isinstance(chosen, str) or chosen is None:
    return Device.of(jax.devices(chosen)[0])
  return Device.of(chosen)
