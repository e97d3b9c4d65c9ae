"""From multi-head to grouped-query attention: what pooling costs and how much a little training brings back.

  python -m benchmarks.uptraining --workdir=runs/quickstart [--num_kv_heads 2 1] [--share 0.05]

A finished run is exported, imported with its key and value heads pooled (Ainslie et al. 2023), and trained on for a
share of its steps on the same text; beside it the run itself, trained on as long.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

from benchmarks import common

# Of the peak rate, falling to nothing; the run itself ended at a twentieth, and at a quarter it gets worse.
_RATE = 0.08


def call(*command: str) -> None:
  subprocess.run([sys.executable, *command], cwd=common.ROOT, check=True, stdout=subprocess.DEVNULL)


def loss(workdir: pathlib.Path) -> float:
  """Validation loss of the last checkpoint of a run, in nats a token."""
  scores = workdir / 'scores.json'
  call('evaluate.py', f'--workdir={workdir}', f'--json={scores}')
  return json.loads(scores.read_text())['loss']


def train_on(run: pathlib.Path, workdir: pathlib.Path, optimizer: dict, steps: int) -> None:
  """A run of `steps` steps that starts with the parameters of another."""
  changes = {'init_from': run, 'train.steps': steps, 'optimizer.schedule': 'linear', 'optimizer.warmup': 2}
  changes |= {f'optimizer.{key}': _RATE * optimizer[key] for key in ('learning_rate', 'adam_learning_rate')}
  changes |= {'train.eval_every': 0, 'train.checkpoint_every': 0}
  options = [f'--config.{key}={value}' for key, value in changes.items()]
  call('train.py', f'--config={run}/config.json', f'--workdir={workdir}', *options)


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--workdir', type=pathlib.Path, default=pathlib.Path('runs/quickstart'), help='a finished run')
  parser.add_argument('--num_kv_heads', type=int, nargs='+', default=[2, 1])
  parser.add_argument('--share', type=float, default=0.05, help='of the steps of the run')
  arguments = parser.parse_args()
  run = arguments.workdir.resolve()
  if not (run / 'summary.json').exists():
    parser.error(f'{run} holds no finished run (summary.json); make train first, or name another with --workdir')
  config = json.loads((run / 'config.json').read_text())
  steps = round(arguments.share * json.loads((run / 'summary.json').read_text())['step'])
  losses = {'multi-head': {'before': loss(run)}}
  with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    exported = folder / 'exported'
    call('convert.py', f'--workdir={run}', f'--to_hf={exported}')
    train_on(run, folder / 'itself', config['optimizer'], steps)
    losses['multi-head']['after'] = loss(folder / 'itself')
    for heads in arguments.num_kv_heads:
      pooled, tuned = folder / f'pooled{heads}', folder / f'tuned{heads}'
      call('convert.py', f'--from_hf={exported}', f'--workdir={pooled}', f'--num_kv_heads={heads}')
      before = loss(pooled)
      train_on(pooled, tuned, config['optimizer'], steps)
      losses[f'{heads} key heads'] = {'before': before, 'after': loss(tuned)}
  original = losses['multi-head']['before']
  rows = []
  for name, found in losses.items():
    lost = found['before'] - original
    share = f'{(found["before"] - found["after"]) / lost:.0%}' if lost else ''
    rows.append([name, f'{found["before"]:.4f}', f'{found["after"]:.4f}', share])
  table = common.markdown_table(['', 'validation loss', f'after {steps} steps', 'of the loss regained'], rows)
  command = f'python -m benchmarks.uptraining --share={arguments.share}'
  common.write('uptraining', {'steps': steps, 'losses': losses}, table, command)


if __name__ == '__main__':
  main()
