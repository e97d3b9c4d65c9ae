"""How long the compiler takes for a training step, by depth and by number of devices; nothing is run.

  python -m benchmarks.compile_time [--depths=4,8,16,32,48,80] [--topologies=v5e:16x16,v5p:16x16x24]

A Llama of 1,024 x depth, its layers scanned, in bfloat16 with full remat and ZeRO-3 over all devices, compiled for TPUs
that are not there (extra tpu-compile). Each program is compiled in a process of its own, three times, of which the
fastest counts. Writes compile_time.{json,md}.
"""

import argparse
import json
import subprocess
import sys

from benchmarks import common

_DEPTHS = '4,8,16,32,48,80'
_TOPOLOGIES = 'v5e:16x16,v5p:8x8x8,v5p:8x8x16,v5p:8x16x16,v5p:16x16x16,v5p:16x16x24'
_DEPTH, _TOPOLOGY = 32, 'v5e:16x16'
_HEADERS = ['layers', 'topology', 'devices', 'lower s', 'compile s', 'together s']


def compile_once(depth: int, text: str) -> dict:
  """Seconds to lower and to compile, in this process."""
  import planning
  from configs.families import llama
  from planning import compiling, setup

  planning.stay_on_cpu()
  where = planning.parse(text)
  config = llama.get_config('3.2-1b')
  config.model.update(num_layers=depth, embed_dim=6144, num_heads=48, mlp_dim=6144, vocab_size=8192, remat='full')
  config.data.update(sequence_length=1024, batch_tokens=where.num_devices * 1024)
  config.optimizer.decay = 0  # the cosine schedule has no use for the share of the run that it is by default
  config.precision.dtype, config.zero_stage = 'bfloat16', 3
  config.mesh.update(data=1, fsdp=where.num_devices)
  config = planning.resolve(config)
  found = compiling.step(setup.Problem.of(config), config, where)
  return {
    'layers': depth,
    'topology': text,
    'devices': where.num_devices,
    'lower_seconds': found.lower_seconds,
    'compile_seconds': found.compile_seconds,
  }


def fastest(depth: int, text: str, times: int) -> dict:
  """The fastest of so many processes."""
  command = [sys.executable, '-m', 'benchmarks.compile_time', '--once', str(depth), text]
  found = []
  for _ in range(times):
    done = subprocess.run(command, cwd=common.ROOT, stdout=subprocess.PIPE, text=True, check=True)
    found.append(json.loads(done.stdout.splitlines()[-1]))
  return min(found, key=lambda record: record['lower_seconds'] + record['compile_seconds'])


def table(records: list[dict]) -> str:
  """Markdown, a row a program."""
  rows = [
    [
      record['layers'],
      record['topology'],
      record['devices'],
      record['lower_seconds'],
      record['compile_seconds'],
      record['lower_seconds'] + record['compile_seconds'],
    ]
    for record in records
  ]
  return common.markdown_table(_HEADERS, rows)


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--depths', default=_DEPTHS, help=f'layers, on {_TOPOLOGY}')
  parser.add_argument('--topologies', default=_TOPOLOGIES, help=f'devices, for {_DEPTH} layers')
  parser.add_argument('--times', type=int, default=3, help='processes of which the fastest counts')
  parser.add_argument('--once', nargs=2, metavar=('LAYERS', 'TOPOLOGY'), help=argparse.SUPPRESS)
  arguments = parser.parse_args()
  if arguments.once:
    print(json.dumps(compile_once(int(arguments.once[0]), arguments.once[1])))
    return
  common.warn_if_busy()
  cases = [(int(depth), _TOPOLOGY) for depth in arguments.depths.split(',')]
  cases += [(_DEPTH, text) for text in arguments.topologies.split(',') if (_DEPTH, text) not in cases]
  records = []
  for depth, text in cases:
    records.append(fastest(depth, text, arguments.times))
    print(records[-1], flush=True)
  common.write('compile_time', {'programs': records}, table(records), 'python -m benchmarks.compile_time')


if __name__ == '__main__':
  main()
