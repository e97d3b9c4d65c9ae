"""What the machine is and what it can do, for MFU and for the records of benchmarks."""

import datetime
import functools
import os
import pathlib
import platform
import time

import jax
import jax.numpy as jnp

import scaling.hardware


def peak_flops(devices, dtype: str) -> float | None:
  """FLOP/s that all devices together could do at best, the denominator of model FLOPs utilisation.

  Args:
    devices: JAX devices of one kind.
    dtype: 'float32' or 'bfloat16', what the run's matmuls take. On accelerators the bfloat16 peak counts for both,
      as is usual, so that figures compare.

  Returns:
    The published peak for the kinds in `scaling.ACCELERATORS`; for a CPU, what a large matmul reached just now (about
    half a second, once a process): simulated devices share one CPU, so their number does not count; None for a kind
    that is not known.
  """
  if devices[0].platform == 'cpu':
    return _cpu_peak(dtype)
  accelerator = scaling.hardware.of_kind(devices[0].device_kind)
  return None if accelerator is None else accelerator.device.bfloat16 * len(devices)


_cpu_peak = functools.cache(lambda dtype: cpu_matmul_flops(dtype))


def cpu_matmul_flops(dtype: str, size: int = 1024, seconds: float = 0.3) -> float:
  """FLOP/s that a square matmul reaches on this CPU now; bfloat16 operands, as everywhere, accumulate in float32."""
  cpu = jax.local_devices(backend='cpu')[0]
  operand = jax.device_put(jnp.ones((size, size), dtype), cpu)
  # Accumulation and result in float32 are what precision.bf16 makes of a model's matmuls.
  matmul = jax.jit(lambda x: jnp.matmul(x, x, preferred_element_type=jnp.float32))
  matmul(operand).block_until_ready()
  best, end = float('inf'), time.perf_counter() + seconds
  while (start := time.perf_counter()) < end:
    matmul(operand).block_until_ready()
    best = min(best, time.perf_counter() - start)
  return 2 * size**3 / best


def describe() -> dict:
  """The machine, the versions and the date (UTC), JSON-able: the header of every benchmark's record."""
  devices = jax.devices()
  return {
    'date': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    'cpu': _cpu_model(),
    'cores': len(os.sched_getaffinity(0)),
    'memory_gib': round(os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30, 1),
    'devices': f'{len(devices)} x {devices[0].device_kind}',
    'python': platform.python_version(),
    'jax': jax.__version__,
    'system': platform.platform(),
  }


def _cpu_model():
  for line in pathlib.Path('/proc/cpuinfo').read_text().splitlines():
    if line.startswith('model name'):
      return line.partition(':')[2].strip()
  return platform.machine()
