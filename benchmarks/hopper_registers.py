"""What the compiler makes of every Hopper kernel: registers, spills and serialised products, without a GPU.

`python -m benchmarks.hopper_registers`, 8 minutes on two cores, needs the extra gpu-compile and writes
benchmarks/results/hopper_registers.{json,md}.
"""

import argparse

import jax
import jax.numpy as jnp

from benchmarks import common, gpu
from pallas_kernels import AttentionSpec, attention, target

_BATCH, _LENGTH, _HEADS, _KV_HEADS = 2, 2048, 8, 4
_IDS, _HEAD, _SEED = ((_BATCH, _LENGTH), jnp.int32), ((_HEADS,), jnp.float32), ((), jnp.uint32)
_OFFSET = ((4,), jnp.uint32)
_SPECS = {  # static fields; arrays by shape and dtype
  'causal': ({'causal': True}, {}),
  'full': ({}, {}),
  'segments': ({'causal': True}, {'q_segment_ids': _IDS, 'kv_segment_ids': _IDS}),
  'orders': ({}, {'q_order': _IDS, 'kv_order': _IDS}),
  'window and sinks': ({'causal': True, 'window': 512}, {'sinks': _HEAD}),
  'soft-cap': ({'causal': True, 'softcap': 30.0}, {}),
  'slopes': ({'causal': True}, {'alibi_slopes': _HEAD}),
  'bias': ({}, {'bias': ((1, _HEADS, _LENGTH, _LENGTH), jnp.float32)}),
  'bias of keys': ({}, {'bias': ((_BATCH, 1, 1, _LENGTH), jnp.float32)}),
  'dropout': ({'causal': True, 'dropout_rate': 0.1}, {'dropout_seed': _SEED}),
  'dropout of a part': ({'causal': True, 'dropout_rate': 0.1}, {'dropout_seed': _SEED, 'dropout_offset': _OFFSET}),
}
_UNGROUPED = ', a key head for each head'
_MOST = ('causal', 'full', 'segments', 'soft-cap', 'dropout', 'dropout of a part')
CASES = (
  [(head_dim, spec) for head_dim in (64, 128) for spec in (*_SPECS, 'decoding')]
  + [(head_dim, spec) for head_dim in (96, 192, 256) for spec in _MOST]
  + [(128, spec + _UNGROUPED) for spec in ('causal', 'segments')]
)


def _compile(head_dim, name, struct):
  """Compiles the outputs and, but for decoding, all gradients of one case."""
  static, arrays = ({}, {}) if name == 'decoding' else _SPECS[name.removesuffix(_UNGROUPED)]
  arrays = {field: struct(*array) for field, array in arrays.items()}
  learned = {field: arrays.pop(field) for field in ('alibi_slopes', 'bias', 'sinks') if field in arrays}
  q = struct((_BATCH, 4 if name == 'decoding' else _LENGTH, _HEADS, head_dim), jnp.bfloat16)
  kv_heads = _HEADS if name.endswith(_UNGROUPED) else _KV_HEADS
  k = struct((_BATCH, _LENGTH, kv_heads, head_dim), jnp.bfloat16)

  def loss(q, k, v, learned, arrays):
    spec = AttentionSpec(**static, **learned, **arrays)
    return jnp.sum(attention(q, k, v, spec, implementation='hopper').astype(jnp.float32))

  with target(gpu.H200):
    step = loss if name == 'decoding' else jax.grad(loss, (0, 1, 2, 3))
    jax.jit(step).lower(q, k, k, learned, arrays).compile()


def measure(target_config: str | None) -> list[dict]:
  """Returns for each kernel of each case its head_dim, spec, name, registers, spill_bytes and warnings."""
  devices, rows = gpu.topology(target_config), []
  for head_dim, name in CASES:
    with gpu.ptxas_dumps() as folder:
      _compile(head_dim, name, lambda shape, dtype: gpu.struct(devices, shape, dtype))
      reports = gpu.ptxas_reports(folder)
    rows += [{'head_dim': head_dim, 'spec': name, **report} for report in reports]
    print(f'head_dim {head_dim}, {name}: {gpu.ptxas_line(reports)}', flush=True)
  return rows


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  gpu.add_arguments(parser)
  arguments = parser.parse_args()
  arguments.compile_only = True
  gpu.choose_platform(arguments)
  rows = measure(arguments.target_config)
  table = common.markdown_table(
    ['head_dim', 'spec', 'kernel', 'registers', 'spilled bytes', 'warnings'],
    [
      [row['head_dim'], row['spec'], row['kernel'], row['registers'], row['spill_bytes'], '; '.join(row['warnings'])]
      for row in rows
    ],
  )
  machine = {'target': gpu.H200.kind, 'jax': jax.__version__}
  record = gpu.Record('hopper_registers', 'python -m benchmarks.hopper_registers', arguments.out, machine)
  record.write({'kernels': rows}, table)


if __name__ == '__main__':
  main()
