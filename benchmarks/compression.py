"""Bits per byte of the quickstart's model and of xz on the same validation text.

  python -m benchmarks.compression --workdir=runs/quickstart

xz -9e is given the validation text alone, and then after the training text: the growth of the compressed file, with a
dictionary that holds both.
"""

import argparse
import json
import lzma
import pathlib

from benchmarks import common
from data import corpora, documents
from training import configs


def texts(data_config) -> tuple[bytes, bytes]:
  """Training and validation text of a config's only corpus, documents one after the other."""
  counts = documents.Counts()
  [corpus] = corpora.find(data_config)
  read = list(documents.unique(corpora.read(corpus, counts), set(), counts))
  train, validation = (
    ''.join(document.text for document in part).encode()
    for part in documents.split(read, data_config.validation_fraction)
  )
  return train, validation


def xz_bytes(text: bytes, dictionary_bytes: int) -> int:
  """Size of `xz --format=xz -9e` with a dictionary of at least `dictionary_bytes`."""
  preset = 9 | lzma.PRESET_EXTREME
  dictionary = max(64 * 2**20, dictionary_bytes)  # 64 MiB is that of -9
  filters = [{'id': lzma.FILTER_LZMA2, 'preset': preset, 'dict_size': dictionary}]
  return len(lzma.compress(text, format=lzma.FORMAT_XZ, filters=filters))


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--workdir', type=pathlib.Path, default=pathlib.Path('runs/quickstart'), help='a finished run')
  workdir = parser.parse_args().workdir
  if not (workdir / 'summary.json').exists():
    parser.error(f'{workdir} holds no finished run (summary.json); make train first, or name another with --workdir')
  summary = json.loads((workdir / 'summary.json').read_text())
  config = configs.from_json(json.loads((workdir / 'config.json').read_text()))
  train, validation = texts(config.data)
  total = len(train) + len(validation)
  alone = xz_bytes(validation, total)
  after = xz_bytes(train + validation, total) - xz_bytes(train, total)
  results = {
    'validation_bytes': len(validation),
    'train_bytes': len(train),
    'bits_per_byte': {
      'xz -9e': 8 * alone / len(validation),
      'xz -9e after the training text': 8 * after / len(validation),
      'model': summary['bits_per_byte'],
    },
    'training': summary,
  }
  rows = [[name, f'{value:.3f}'] for name, value in results['bits_per_byte'].items()]
  table = common.markdown_table(['bits per byte of the validation text', ''], rows)
  common.write('compression', results, table, f'python -m benchmarks.compression --workdir={workdir}')


if __name__ == '__main__':
  main()
