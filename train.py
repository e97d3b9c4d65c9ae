"""Trains the model of a config, or goes on with the run of a directory.

  python train.py --config=configs/quickstart.py --workdir=runs/quickstart [--config.train.steps=500 ...]

Exit status: 0 finished, 1 an error said in words, 2 bad usage, 75 stopped by a signal after saving: the same
command goes on from there.
"""

import argparse
import logging
import os
import sys

from training import heap


def parse(arguments):
  """The known arguments, and the overrides of config keys."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
  )
  parser.add_argument('--config', required=True, metavar='FILE[:VARIANT]', help='such as configs/quickstart.py')
  parser.add_argument('--workdir', required=True, metavar='DIR', help='run directory; one that holds a run is resumed')
  parser.add_argument('--stop_after', type=int, default=0, metavar='STEP', help='save and stop after it (status 75)')
  hosts = parser.add_argument_group('several processes, where no launcher tells them (docs/parallelism/hosts.md)')
  hosts.add_argument('--coordinator', metavar='HOST:PORT', help='of process 0, as all processes can reach it')
  hosts.add_argument('--num_processes', type=int, metavar='N', help='of the run; 1 = alone, whatever a launcher tells')
  hosts.add_argument('--process_id', type=int, metavar='I', help='of this one, from 0')
  known, rest = parser.parse_known_args(arguments)
  overrides = [argument for argument in rest if argument.startswith('--config.') and '=' in argument]
  if wrong := [argument for argument in rest if argument not in overrides]:
    parser.error(f'unknown arguments {" ".join(wrong)}; a config key is set by --config.GROUP.KEY=VALUE')
  return known, overrides


def main() -> int:
  known, overrides = parse(sys.argv[1:])
  logging.basicConfig(format='%(message)s', level=logging.WARNING)

  import jax

  import inference
  import parallel
  import training
  from data import cache
  from training import checkpoints, configs, loop

  try:
    config = configs.load(known.config, overrides)
    parallel.hosts.start(known.coordinator, known.num_processes, known.process_id)
    jax.config.update('jax_compilation_cache_dir', str(cache.cache_dir(config.data) / 'compiled'))
    finished = training.train(config, known.workdir, stop_after=known.stop_after, sampler=inference.sample_texts)
  except (ValueError, OSError, ImportError, checkpoints.CheckpointError, loop.TrainingAborted) as error:
    print(f'error: {error}', file=sys.stderr)
    return parallel.hosts.fail(1)
  return 0 if finished else os.EX_TEMPFAIL


if __name__ == '__main__':
  if 'GLIBC_TUNABLES' not in os.environ:  # read by glibc only as a process starts
    os.execve(sys.executable, sys.orig_argv, os.environ | heap.TUNABLES)
  sys.exit(main())
