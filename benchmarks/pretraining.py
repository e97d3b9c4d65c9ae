"""Small pre-training runs of each family on the documentation of Python, against the unigram entropy.

  python -m benchmarks.pretraining [--configs quickstart moe_docs bert_docs ...] [--folder=runs]

Each config is trained to its end in FOLDER/NAME, or taken from there where it has been. The baseline knows how often
each token is to be predicted in the validation text itself, and nothing else: no model without context does better.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import time

import numpy as np

from benchmarks import common
from training import configs, evaluation, run
from training import console as console_lib

CONFIGS = ('quickstart', 'moe_docs', 'bert_docs', 'xlnet_docs', 't5_docs', 'bart_docs')


def unigram_entropy(config) -> float:
  """Entropy of the labels of one pass over the validation text, in nats a label."""
  with console_lib.make_console(sys.stderr) as console:
    dataset = run.read_data(config, console)
  counts = np.zeros(config.model.vocab_size, np.int64)
  for batch in evaluation.batches(config, dataset.validation, dataset.tokenizer.special):
    counts += np.bincount(batch['labels'][batch['labels'] >= 0], minlength=len(counts))
  shares = counts[counts > 0] / counts.sum()
  return float(-np.sum(shares * np.log(shares)))


def measure(name: str, workdir: pathlib.Path) -> dict:
  """What a run reached, trained first where that is not done."""
  started, seconds = time.perf_counter(), None
  if not (workdir / 'summary.json').exists():
    command = ['train.py', f'--config=configs/{name}.py', f'--workdir={workdir}']
    subprocess.run([sys.executable, *command], cwd=common.ROOT, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - started
  config = configs.from_json(json.loads((workdir / 'config.json').read_text()))
  summary = json.loads((workdir / 'summary.json').read_text())
  entropy = unigram_entropy(config)
  return {
    'objective': config.objective.name,
    'parameters': summary['params'],
    'steps': summary['step'],
    'seconds': seconds,
    'loss': summary['eval_loss'],
    'unigram_entropy': entropy,
    'margin': entropy - summary['eval_loss'],
  }


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--configs', nargs='+', default=CONFIGS, metavar='NAME', help='of configs/NAME.py')
  parser.add_argument('--folder', type=pathlib.Path, default=pathlib.Path('runs'), help='of the run directories')
  arguments = parser.parse_args()
  common.warn_if_busy()
  results = {name: measure(name, (arguments.folder / name).resolve()) for name in arguments.configs}
  rows = [
    [name, found['objective'], f'{found["parameters"]:,}', found['steps']]
    + ['' if found['seconds'] is None else f'{found["seconds"]:.0f}']
    + [f'{found[key]:.3f}' for key in ('loss', 'unigram_entropy', 'margin')]
    for name, found in results.items()
  ]
  headers = ['config', 'objective', 'parameters', 'steps', 'seconds', 'validation loss', 'unigram entropy', 'margin']
  common.write(
    'pretraining', {'runs': results}, common.markdown_table(headers, rows), 'python -m benchmarks.pretraining'
  )


if __name__ == '__main__':
  main()
