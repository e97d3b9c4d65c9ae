"""Weights from and to directories of Hugging Face transformers.

  python convert.py --from_hf=DIR --workdir=runs/mine            # evaluate, generate, or train on it:
      python train.py --config=runs/mine/config.json --config.init_from=runs/mine --workdir=runs/tuned
  python convert.py --workdir=runs/mine --to_hf=DIR

Exit status: 0 done, 1 an error said in words, 2 bad usage.
"""

import argparse
import pathlib
import re
import shlex
import sys

_UNITS = {'KB': 10**3, 'MB': 10**6, 'GB': 10**9}


def parse(arguments):
  """The arguments."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
  )
  parser.add_argument('--workdir', required=True, metavar='DIR', help='run directory: to be made, or to be exported')
  direction = parser.add_mutually_exclusive_group(required=True)
  direction.add_argument('--from_hf', metavar='DIR', help='directory with config.json, safetensors and a tokenizer')
  direction.add_argument('--to_hf', metavar='DIR', help='directory to be made')
  reading = parser.add_argument_group('with --from_hf')
  reading.add_argument(
    '--num_kv_heads', type=int, metavar='N', help='pool key and value heads to so many; train on then'
  )
  writing = parser.add_argument_group('with --to_hf')
  writing.add_argument('--step', type=int, metavar='STEP', help='checkpoint to use; default the last one')
  writing.add_argument('--family', metavar='NAME', help='written as which; default: what it was, or the first that can')
  writing.add_argument('--dtype', choices=('F32', 'BF16', 'F16'), help='default: what the weights came with, or F32')
  writing.add_argument('--max_shard_size', type=_size, default='5GB', metavar='SIZE', help='of a file (default 5GB)')
  known = parser.parse_args(arguments)
  other = (known.step, known.family, known.dtype) if known.from_hf else (known.num_kv_heads,)
  if any(value is not None for value in other):
    parser.error('--step, --family and --dtype go with --to_hf, --num_kv_heads with --from_hf')
  return known


def _size(text: str) -> int:
  match = re.fullmatch(r'(\d+)(KB|MB|GB)', text)
  if not match:
    raise argparse.ArgumentTypeError(f'{text!r} is no size such as 500MB or 5GB')
  return int(match[1]) * _UNITS[match[2]]


def _command() -> str:
  return shlex.join(['python', *sys.argv])


def from_hf(source: str, workdir: pathlib.Path, num_kv_heads: int | None) -> str:
  """Makes a run directory of a Hugging Face directory; returns what was made, in words."""
  import interop
  from training import cards, checkpoints, directory, resolution

  if (workdir / 'config.json').exists():
    raise ValueError(f'{workdir} holds a run; name another --workdir')
  pretrained = interop.read(source)
  if num_kv_heads is not None:
    pretrained = interop.grouped(pretrained, num_kv_heads)
  config = pretrained.config
  config.data.update(tokenizer='file', tokenizer_path=str(workdir / 'tokenizer'))
  config = resolution.resolve(config, pretrained.tokenizer)
  names = {path: f'params/{path}' for path in pretrained.shapes}
  with checkpoints.Checkpoints(workdir / 'checkpoints') as saved:
    shapes = {names[path]: shape for path, shape in pretrained.shapes.items()}
    saved.save_parts(0, shapes, ((names[path], index, part) for path, index, part in pretrained.parts()), {})
  interop.Origin.of(pretrained).save(workdir / directory.ORIGIN)
  directory.write_identity(config, pretrained.tokenizer, workdir)
  num_params = pretrained.num_params
  card = cards.card(config, name=workdir.name, num_params=num_params, summary={}, command=_command(), source=source)
  cards.write(workdir, card)
  return f'{workdir}: {pretrained.family.name}, {num_params:,} parameters, tokenizer {pretrained.tokenizer.format}'


def to_hf(known) -> str:
  """Makes a Hugging Face directory of a run directory; returns what was made, in words."""
  import interop
  import model
  from training import cards, directory, runs

  run = runs.open_run(known.workdir, known.step)
  origin = interop.Origin.load(run.workdir / directory.ORIGIN)
  card = lambda family: cards.card(
    run.config,
    name=pathlib.Path(known.to_hf).name,
    num_params=model.create(run.config.model).num_params,
    summary=cards.read_summary(run.workdir),
    command=_command(),
    source=origin.config.get('_name_or_path', '') or (origin.config and known.workdir) or '',
    library='transformers',
  )
  options = {'family': known.family, 'dtype': known.dtype, 'shard_bytes': known.max_shard_size}
  family = interop.write(known.to_hf, run.config, run.tokenizer, run.read, origin, card=card, **options)
  return f'{known.to_hf}: {family.architectures[0]}, step {run.step:,} of {known.workdir}'


def main() -> int:
  known = parse(sys.argv[1:])
  from training import checkpoints

  try:
    done = from_hf(known.from_hf, pathlib.Path(known.workdir), known.num_kv_heads) if known.from_hf else to_hf(known)
  except (ValueError, OSError, ImportError, checkpoints.CheckpointError) as error:
    print(f'error: {error}', file=sys.stderr)
    return 1
  print(done)
  return 0


if __name__ == '__main__':
  sys.exit(main())
