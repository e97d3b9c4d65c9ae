"""Tells whether a config fits on devices that need not be there, and how fast it can run on them.

  python plan.py --config=configs/NAME.py[:VARIANT] --layout [--topology=v5e:16x16]
  python plan.py --config=... --topology=v5e:16x16 [--suggest] [--json=OUT] [--config.GROUP.KEY=VALUE ...]

A topology is v5e:16x16, v5p:8x8x8, v6e:16x16, tpu7x:4x4x4 or h200:32. The step is compiled for it by the real compiler,
which the extras tpu-compile and gpu-compile bring; docs/planning.md explains what is printed.

Exit status: 0 it fits, 1 it does not or cannot be planned, said in words, 2 bad usage.
"""

import argparse
import json
import pathlib
import sys


def parse(arguments):
  """The known arguments, and the overrides of config keys."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
  )
  parser.add_argument('--config', required=True, metavar='FILE[:VARIANT]', help='such as configs/llama.py:8b')
  parser.add_argument('--layout', action='store_true', help='every array of the state, its split and its bytes')
  parser.add_argument('--topology', metavar='NAME:SHAPE', help='devices to compile for, such as v5e:16x16 or h200:32')
  parser.add_argument('--suggest', action='store_true', help='search mesh, zero_stage, remat and accumulation')
  parser.add_argument('--target_config', metavar='FILE', help="XLA's description of a GPU other than h200 and h100")
  parser.add_argument('--json', metavar='OUT', help='file to write the plan to')
  known, rest = parser.parse_known_args(arguments)
  overrides = [argument for argument in rest if argument.startswith('--config.') and '=' in argument]
  if wrong := [argument for argument in rest if argument not in overrides]:
    parser.error(f'unknown arguments {" ".join(wrong)}; a config key is set by --config.GROUP.KEY=VALUE')
  if not (known.layout or known.topology):
    parser.error('nothing to do; give --layout, or --topology=v5e:16x16')
  if known.suggest and not known.topology:
    parser.error('--suggest needs the devices; give --topology=v5e:16x16')
  return known, overrides


def run(known, overrides) -> bool:
  """Does what was asked; returns whether the config fits."""
  import planning
  from training import configs

  planning.stay_on_cpu()
  where = planning.parse(known.topology) if known.topology else None
  config = planning.resolve(configs.load(known.config, overrides))
  found = {'config': known.config, 'overrides': overrides}
  if known.layout:
    count = where.num_devices if where else planning.device_count(config)
    if count is None:
      raise ValueError('--layout of a mesh with -1 needs the number of devices; give --topology=NAME:SHAPE too')
    leaves, mesh_shape = planning.state_layout(config, count)
    print(planning.layout_text(leaves, mesh_shape))
    found['layout'] = [
      {'path': leaf.path, 'of': leaf.kind, 'shape': leaf.shape, 'split': leaf.split, 'bytes': leaf.bytes}
      for leaf in leaves
    ]
  fits = True
  if known.suggest:
    plans, tried = planning.suggest(config, where, target_config=known.target_config)
    print(f'\n{tried:,} layouts were estimated; these were compiled and fit, the fastest first')
    for rank, plan in enumerate(plans, 1):
      print(f'\n{rank}. {planning.words(plan.config)}\n{planning.text(plan)}')
    found['suggestions'] = [{'overrides': planning.words(plan.config), **planning.to_json(plan)} for plan in plans]
    fits = bool(plans)
  elif where:
    plan = planning.make_plan(config, where, known.target_config)
    print(planning.text(plan))
    found |= planning.to_json(plan)
    fits = plan.fits
    if not fits:
      print(f'error: {planning.misfit_words(plan)}', file=sys.stderr)
  if known.json:
    pathlib.Path(known.json).write_text(json.dumps(found, indent=2) + '\n', encoding='utf-8')
  return fits


def main() -> int:
  known, overrides = parse(sys.argv[1:])
  try:
    return 0 if run(known, overrides) else 1
  except (ValueError, OSError, ImportError) as error:
    print(f'error: {error}', file=sys.stderr)
    return 1


if __name__ == '__main__':
  sys.exit(main())
