"""Scores the model of a run on its validation split or on any text.

  python evaluate.py --workdir=runs/quickstart [--data=FILE_OR_DIRECTORY_OR_GLOB] [--json=OUT]

Exit status: 0 done, 1 an error said in words, 2 bad usage.
"""

import argparse
import functools
import json
import math
import pathlib
import sys

# What the table calls a result and how it writes it, where that is not its key and four decimals.
_SHOWN = {
  'loss': ('loss (nats a token)', '{:.4f}'),
  'perplexity': ('perplexity', '{:,.2f}'),
  'accuracy': ('accuracy', '{:.2%}'),
  'tokens': ('tokens', '{:,}'),
  'bytes': ('bytes', '{:,}'),
  'documents': ('documents', '{:,}'),
}


def parse(arguments):
  """The arguments."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
  )
  parser.add_argument('--workdir', required=True, metavar='DIR', help='run directory of train.py')
  parser.add_argument('--step', type=int, metavar='STEP', help='checkpoint to use; default the last one')
  parser.add_argument('--data', metavar='PATH', help='text: file, directory or glob; default the validation split')
  parser.add_argument('--json', metavar='OUT', help='file to write the result to')
  return parser.parse_args(arguments)


def read_split(run, path: str | None, console):
  """The text to score: that of `path`, or the validation split of the run.

  Raises:
    ValueError: the run's corpus is not what it was when its tokenizer was trained, or the run held nothing out.
  """
  import data
  from training.run import read_data

  config = run.config
  if path and config.data.corpus == 'pairs':
    return data.pair_split(path, run.tokenizer, config.data)
  if path:
    return data.text_split([path], run.tokenizer, config.data.document)
  dataset = read_data(config, console)
  if dataset.tokenizer.fingerprint != run.tokenizer.fingerprint:
    raise ValueError(
      f'the corpus of {run.workdir} is not what it was when the run was trained, so its validation '
      'split cannot be made again; give a text with --data=PATH'
    )
  if not dataset.validation.num_documents:
    raise ValueError(f'{run.workdir} held nothing out (data.validation_fraction=0); give a text with --data=PATH')
  return dataset.validation


def score(run, split) -> dict[str, float | int]:
  """Loss, perplexity, accuracy, bits per byte, and what they were measured on."""
  import jax

  import objectives
  import precision
  from training import evaluation

  objective = objectives.create(run.config.objective)
  loss = precision.apply(run.config.precision, objective.loss(run.model))
  eval_step = jax.jit(lambda params, batch: loss(params, batch, None)[1])
  summarize = functools.partial(objective.summarize, bytes_per_target=split.bytes_per_target)
  result = evaluation.evaluate(
    eval_step, run.params, evaluation.batches(run.config, split, run.tokenizer.special), summarize
  )
  return result | {'bytes': split.num_bytes, 'documents': split.num_documents}


def show(result: dict, title: str) -> None:
  """Prints the result as a table under its title."""
  import rich.console
  import rich.table

  table = rich.table.Table('', rich.table.Column(justify='right'), show_header=False)
  for key, value in result.items():
    name, form = _SHOWN.get(key, (key.replace('_', ' '), '{:,.4f}'))
    table.add_row(name, form.format(value))
  console = rich.console.Console()
  console.print(title, soft_wrap=True, markup=False, highlight=False)
  console.print(table)


def main() -> int:
  known = parse(sys.argv[1:])
  from training import checkpoints

  try:
    import jax

    import training
    from data import cache
    from training import console as console_lib

    run = training.load_run(known.workdir, known.step)
    jax.config.update('jax_compilation_cache_dir', str(cache.cache_dir(run.config.data) / 'compiled'))
    with console_lib.make_console(sys.stderr) as console:
      split = read_split(run, known.data, console)
    result = score(run, split)
    show(result, f'{known.workdir} at step {run.step:,} on {known.data or "its validation split"}')
    if known.json:
      # JSON knows no infinity, which a perplexity can be.
      values = {key: value if math.isfinite(value) else None for key, value in result.items()}
      values |= {'workdir': known.workdir, 'step': run.step, 'data': known.data or 'validation'}
      pathlib.Path(known.json).write_text(json.dumps(values, indent=2) + '\n', encoding='utf-8')
  except (ValueError, OSError, ImportError, checkpoints.CheckpointError) as error:
    print(f'error: {error}', file=sys.stderr)
    return 1
  return 0


if __name__ == '__main__':
  sys.exit(main())
