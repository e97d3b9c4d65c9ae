"""What the GPU benchmarks share: programs taking turns on the device, and compiling for an H200 without one."""

import contextlib
import dataclasses
import os
import pathlib
import re
import statistics
import subprocess
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import common
from pallas_kernels import Device

H200 = Device('gpu', 'NVIDIA H200')
# What a good H200 was seen to reach: FLOP/s of a large bfloat16 matmul, bytes/s of a copy. For lower bounds only.
REACHABLE_FLOPS, REACHABLE_BYTES = 790e12, 4.3e12
_QUERIES = ('name', 'driver_version', 'power.limit', 'clocks.max.sm', 'temperature.gpu')


def add_arguments(parser) -> None:
  """Adds what both GPU benchmarks take: where to write, and running or only compiling without a GPU."""
  parser.add_argument('--out', metavar='DIR', type=pathlib.Path, default=common.RESULTS, help='where results go')
  parser.add_argument('--dry_run', action='store_true', help='all of it on the CPU, tiny; times mean nothing')
  parser.add_argument('--compile_only', action='store_true', help='only compile, for an H200 that need not be there')
  add_target_config(parser)


def add_target_config(parser) -> None:
  """Adds --target_config, by default $MESHLM_GPU_TARGET."""
  parser.add_argument(
    '--target_config',
    metavar='PATH',
    default=os.environ.get('MESHLM_GPU_TARGET'),
    help='the H200 as XLA describes it; default: $MESHLM_GPU_TARGET or planning/h200.txtpb',
  )


def stay_off_gpu() -> None:
  """Makes JAX use the CPU only; before the first use of a device."""
  # The CUDA plugin reads the variable and then asks for no driver.
  os.environ['JAX_PLATFORMS'] = 'cpu'
  jax.config.update('jax_platforms', 'cpu')


def choose_platform(arguments) -> None:
  """Stays off the GPU where nothing is to be run on it; before the first use of a device."""
  if arguments.dry_run or arguments.compile_only:
    stay_off_gpu()
    return
  jax.config.update('jax_platforms', with_cpu(jax.config.jax_platforms))
  if jax.default_backend() != 'gpu':
    raise SystemExit(f'there is no GPU, only {jax.devices()[0].device_kind}; use --dry_run or --compile_only')


def with_cpu(platforms: str | None) -> str | None:
  """The platforms that JAX may use, as JAX_PLATFORMS names them, and the CPU, which computes what is expected."""
  return platforms and ','.join(dict.fromkeys([*platforms.split(','), 'cpu']))


def describe() -> dict:
  """The GPU, its driver and limits as nvidia-smi tells them; {} where there is none."""
  command = ['nvidia-smi', f'--query-gpu={",".join(_QUERIES)}', '--format=csv,noheader']
  try:
    line = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.splitlines()[0]
  except (OSError, subprocess.SubprocessError, IndexError):
    return {}
  return {f'gpu {query}': value.strip() for query, value in zip(_QUERIES, line.split(','), strict=True)}


def words(error: Exception) -> str:
  """One line that says what went wrong, for records and tables."""
  return f'{type(error).__name__}: {" ".join(str(error).split())[:400]}'


@dataclasses.dataclass(frozen=True)
class Record:
  """A benchmark's results, written again after every part, so that a run that is ended leaves what it had.

  Attributes:
    name: of the benchmark.
    command: what makes the results again.
    folder: where NAME.json and NAME.md go.
    machine: what the results were made on, shown in both.
  """

  name: str
  command: str
  folder: pathlib.Path
  machine: dict

  def write(self, results: dict, table: str) -> None:
    common.save(self.folder, self.name, {'command': self.command, 'machine': self.machine, **results}, table)


def interleave(programs: dict, wait: dict, seconds: float, burst: float = 0.015, most: int = 24) -> dict:
  """Runs programs in turn, each for many calls in a row that end with one wait, so that dispatch is not timed.

  Args:
    programs: name -> `run(i)`, which starts call number i (to take another input) and returns what to wait for.
    wait: name -> `wait(result)`, which returns when the device has finished.
    seconds: for all rounds together; there are at least 3.
    burst: seconds of the calls in a row.
    most: rounds at most.

  Returns:
    For each name the seconds of a call, one entry a round.
  """
  counts = {}
  for name, run in programs.items():
    wait[name](run(0))
    counts[name] = max(1, min(200, int(burst / _burst(run, wait[name], 2))))
  times, end = {name: [] for name in programs}, time.perf_counter() + seconds
  while len(next(iter(times.values()))) < 3 or (time.perf_counter() < end and len(next(iter(times.values()))) < most):
    for name, run in programs.items():
      times[name].append(_burst(run, wait[name], counts[name]))
  return times


def _burst(run, wait, count):
  start = time.perf_counter()
  for i in range(count):
    result = run(i)
  wait(result)
  return (time.perf_counter() - start) / count


def matmul_flops(size: int = 8192, seconds: float = 2.0) -> float:
  """FLOP/s of a square bfloat16 matmul of random data, the median of its rounds: what a kernel can hope for here."""
  left, right = (normal((size, size), jnp.bfloat16, seed) for seed in range(2))
  program = jax.jit(jnp.matmul).lower(left, right).compile()
  times = interleave({'matmul': lambda i: program(left, right)}, {'matmul': jax.block_until_ready}, seconds, most=100)
  return 2 * size**3 / statistics.median(times['matmul'])


def normal(shape, dtype, seed: int) -> jax.Array:
  """Random normal data made on the device; data of zeros would run faster than any real data."""
  return jax.jit(lambda key: jax.random.normal(key, shape, jnp.float32).astype(dtype))(jax.random.key(seed))


def topology(target_config: str | None, count: int = 1) -> list:
  """H200s that programs can be compiled for without being there.

  Args:
    target_config: file with XLA's GpuTargetConfigProto; None: that of planning/.
    count: GPUs, in hosts of 8.

  Raises:
    SystemExit: the file is not there, or the compiler is not installed.
  """
  import planning.topology  # needs what a machine that only measures may lack

  try:
    return planning.topology.devices(planning.parse(f'h200:{count}'), target_config)
  except (ValueError, OSError) as error:
    raise SystemExit(f'{error}; --target_config=PATH or MESHLM_GPU_TARGET=PATH names the target') from error


def struct(devices, shape, dtype) -> jax.ShapeDtypeStruct:
  """An argument of a program for the first of `devices`."""
  mesh = jax.sharding.Mesh(np.array(devices[:1]), ('gpu',))
  return jax.ShapeDtypeStruct(shape, dtype, sharding=jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))


@contextlib.contextmanager
def ptxas_dumps():
  """Gives a folder in which every Mosaic kernel compiled meanwhile leaves what ptxas said; for `ptxas_reports`."""
  with tempfile.TemporaryDirectory() as folder:
    os.environ['MOSAIC_GPU_DUMP_TO'] = folder
    yield pathlib.Path(folder)
    del os.environ['MOSAIC_GPU_DUMP_TO']


def ptxas_reports(folder: pathlib.Path) -> list[dict]:
  """What ptxas said of each kernel, then empties the folder.

  Returns:
    For each `kernel`, by name, `registers` a thread, `spill_bytes` stored, and `warnings` of lost performance.
  """
  reports = []
  for file in sorted(folder.glob('*.ptxas'), key=lambda file: [int(n) for n in re.findall(r'\d+', file.name)]):
    text = file.read_text()
    reports.append(
      {
        'kernel': file.stem.rsplit('_', 1)[0],
        'registers': max(map(int, re.findall(r'Used (\d+) registers', text)), default=None),
        'spill_bytes': max(map(int, re.findall(r'(\d+) bytes spill stores', text)), default=0),
        'warnings': sorted(
          {' '.join(found) for found in re.findall(r'\((C\d+)\) (Potential Performance Loss.*)', text)}
        ),
      }
    )
  for file in folder.iterdir():
    file.unlink()
  return reports


def ptxas_line(reports: list[dict]) -> str:
  """Reports of a program's kernels in one line."""
  if not reports:
    return 'no Mosaic kernels'
  warnings = sorted({warning for report in reports for warning in report['warnings']})
  registers = ', '.join(str(report['registers']) for report in reports)
  spills = ', '.join(str(report['spill_bytes']) for report in reports)
  return f'registers {registers}; spilled bytes {spills}; {"; ".join(warnings) or "no wgmma serialised"}'
