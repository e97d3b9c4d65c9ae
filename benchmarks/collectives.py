"""What the devices of a training step say to each other, and its memory, compiled for H200s that need not be there.

  python -m benchmarks.collectives [--config=llama:8b] [--out=DIR]

The step of a file of configs/, with the mesh, ZeRO stage, precision and accumulation that it names, by the real
compiler; nothing is run. Needs the extra gpu-compile and the target's description (--target_config). Writes
collectives.{json,md}.
"""

import argparse
import collections
import math
import pathlib
import re
import time

import jax
import numpy as np

import parallel
from benchmarks import common, gpu, plain_configs
from pallas_kernels import target
from parallel.collectives import Collective, collectives
from training import program

_GIB, _MIB = 2**30, 2**20
_HEADERS = ['collective', 'of', 'in loops of', 'places', 'times a step', 'MiB each', 'GiB a step']
# What JAX's transformations and control flow add to a name stack.
_WRAPPER = re.compile(r'jit\(\w*\)|\b(jvp|transpose|vmap|remat|checkpoint)(?=\()|[()]')
_PLAIN = {
  '',
  'while',
  'body',
  'cond',
  'closed_call',
  'shard_map',
  'branch_0_fun',
  'branch_1_fun',
  'eval_jaxpr',
  'rematted_computation',
  'checkpoint',
}


def compile_step(name: str, target_config: str | None):
  """Returns the config, the program and its compiled step for as many H200s as the config's mesh has."""
  config = plain_configs.load(*name.partition(':')[::2])
  config.model.update(layer_loop='scan', max_length=config.data.sequence_length)
  config.optimizer.decay = 0  # the cosine schedule has no use for the share of the run that it is by default
  count = math.prod(config.mesh[name] for name in parallel.AXES)
  devices = gpu.topology(target_config, count)
  rows = config.data.batch_tokens // config.data.sequence_length
  built = program.build(config, devices=devices)
  shape = (rows, config.data.sequence_length)
  batch = {name: jax.ShapeDtypeStruct(shape, np.int32) for name in built.task.batch_axes}
  with target(gpu.H200):
    return config, built, built.step.lower(built.abstract_state, batch).compile()


def module(collective: Collective) -> str:
  """The path of the module that a collective belongs to, from the name stack; '' for what is in none."""
  first, *others = _WRAPPER.sub('', collective.scope).split(':')  # several where the compiler made one of them
  path = '/'.join([name for name in first.split('/') if name not in _PLAIN][:-1])  # the last one is the operation
  return f'{path} and others' if others and path else path


def rows(found: list[Collective]) -> list[list]:
  """Table rows, collectives of one kind, module and nest of loops in one, those that move most first."""
  groups = collections.defaultdict(list)
  for collective in found:
    groups[collective.kind, module(collective), collective.loops].append(collective)
  result = []
  for (kind, name, loops), members in groups.items():
    times = int(np.prod([trips or 1 for trips in loops], initial=1))
    sizes = [
      f'{size / _MIB:,.3g}' if size < 100 * _MIB else f'{size / _MIB:,.0f}'
      for size in (min(member.bytes for member in members), max(member.bytes for member in members))
    ]
    each = ' to '.join(dict.fromkeys(sizes))
    moved = times * sum(member.bytes for member in members) / _GIB
    result.append(
      [
        kind,
        name or 'no module',
        ' x '.join(str(trips or '?') for trips in loops) or 'none',
        len(members),
        times * len(members),
        each,
        moved,
      ]
    )
  return sorted(result, key=lambda row: -row[-1])


def summary(config, built, compiled, seconds: float) -> dict:
  """What is said of the whole program."""
  analysis, text = compiled.memory_analysis(), compiled.as_text()
  return {
    'devices': built.mesh.size,
    'mesh': dict(built.mesh.shape),
    'zero_stage': config.zero_stage,
    'precision': config.precision.dtype,
    'accumulation_steps': config.optimizer.accumulation_steps,
    'batch_tokens': config.data.batch_tokens,
    'sequence_length': config.data.sequence_length,
    'parameters': built.model.num_params,
    'compile_seconds': seconds,
    'mosaic_kernels': text.count('custom_call_target="mosaic_gpu'),
    'bytes_per_device': {'arguments': analysis.argument_size_in_bytes, 'temporaries': analysis.temp_size_in_bytes},
  }


def table(about: dict, found: list[Collective]) -> str:
  """Markdown: the program in a line, then its collectives."""
  memory = about['bytes_per_device']
  line = (
    f'{about["parameters"] / 1e9:.2f}B parameters on {about["devices"]} H200s, zero_stage {about["zero_stage"]}, '
    f'{about["precision"]}, {about["batch_tokens"]:,} tokens in {about["accumulation_steps"]} microbatches. '
    f'Each device: arguments {memory["arguments"] / _GIB:.2f} GiB, temporaries '
    f'{memory["temporaries"] / _GIB:.2f} GiB, {about["mosaic_kernels"]} calls of Mosaic kernels. MiB and GiB are '
    'those of the larger side on one device.'
  )
  return f'{line}\n\n{common.markdown_table(_HEADERS, rows(found))}'


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--config', default='llama:8b', metavar='NAME[:VARIANT]', help='a file of configs/, its variant')
  parser.add_argument('--out', metavar='DIR', type=pathlib.Path, default=common.RESULTS, help='where results go')
  gpu.add_target_config(parser)
  arguments = parser.parse_args()
  gpu.stay_off_gpu()
  start = time.perf_counter()
  config, built, compiled = compile_step(arguments.config, arguments.target_config)
  about, found = summary(config, built, compiled, time.perf_counter() - start), collectives(compiled.as_text())
  record = gpu.Record(
    'collectives',
    f'python -m benchmarks.collectives --config={arguments.config}',
    arguments.out,
    {'jax': jax.__version__},
  )
  listed = [{'kind': x.kind, 'bytes': x.bytes, 'loops': x.loops, 'module': module(x)} for x in found]
  record.write({**about, 'collectives': listed}, text := table(about, found))
  print(text)


if __name__ == '__main__':
  main()
