"""Every entry of the Hopper tuning tables, compiled by the real compiler down to machine code, without a GPU."""

import json
import os
import subprocess
import sys

import pytest

from benchmarks import common, hopper_registers

_TARGET = common.ROOT.parent / 'shared/aot/h200.txtpb'


@pytest.mark.slow
@pytest.mark.proof(
  'benchmarks/results/hopper_registers.json', built_with=('jax-cuda13-plugin', 'nvidia-cuda-nvcc', 'nvidia-nvvm')
)
def test_no_kernel_spills_registers_or_serialises_products_and_the_committed_table_is_of_these_cases(tmp_path):
  pytest.importorskip('jax_cuda13_plugin', reason='compiling for a GPU takes the extra gpu-compile')
  if not _TARGET.is_file():
    pytest.skip(f'the description of the target is not there: {_TARGET}')
  # A process of its own: the compilers' plugin has to be loaded before anything runs.
  environment = os.environ | {'XLA_FLAGS': '', 'PYTHONPATH': str(common.ROOT)}
  subprocess.run(
    [sys.executable, '-m', 'benchmarks.hopper_registers', f'--out={tmp_path}'],
    check=True,
    cwd=common.ROOT,
    env=environment,
  )
  kernels = json.loads((tmp_path / 'hopper_registers.json').read_text())['kernels']
  assert {(row['head_dim'], row['spec']) for row in kernels} == set(hopper_registers.CASES)
  # Registers that are one or two too many: outside of the loops, and one that is read back once a block; places of
  # stores, read back once a query head; and what the offset of dropout takes where there is room for nothing.
  allowed = {
    (256, 'dropout'): 16,
    (256, 'dropout of a part'): 116,
    (128, 'segments, a key head for each head'): 4,
    (128, 'causal'): 24,
    (128, 'segments'): 24,
  }
  assert not [
    row for row in kernels if row['spill_bytes'] > allowed.get((row['head_dim'], row['spec']), 0) or row['warnings']
  ]
  committed = json.loads((common.RESULTS / 'hopper_registers.json').read_text())['kernels']
  cases = {(row['head_dim'], row['spec']) for row in committed}
  assert cases == set(hopper_registers.CASES), 'run python -m benchmarks.hopper_registers'
