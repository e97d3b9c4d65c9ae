"""Every family of Hugging Face models against transformers, on the golden files of the tests.

  python -m benchmarks.families

Small random models of transformers are read as convert.py reads them; loss, outputs and the gradient of every tensor
are compared in float32 on padded rows, and the models are written back. The table in README.md is this one.
"""

import pathlib
import re
import tempfile

import interop
from benchmarks import common
from tests.interop import goldens, parity


def measure() -> dict[str, dict]:
  """The worst of the golden models of each family, by its name."""
  found = {}
  with tempfile.TemporaryDirectory() as folder:
    for name in goldens.NAMES:
      directory = pathlib.Path(folder, name)
      errors = parity.measure(name, directory)
      pretrained = interop.read(directory)
      family = found.setdefault(
        pretrained.family.name,
        {
          'stack': pretrained.config.model.family,
          'objective': pretrained.family.objective,
          'models': [],
          'outputs': 0.0,
          'gradients': 0.0,
          'written_back': True,
        },
      )
      family['models'].append(name)
      family['outputs'] = max(family['outputs'], *errors.outputs.values())
      family['gradients'] = max(family['gradients'], *errors.gradients.values())
      family['written_back'] &= parity.comes_back(name, directory / 'back', with_origin=True)
  return found


def main():
  found = measure()
  rows = [
    [name, family['stack'], family['objective'], len(family['models'])]
    + [f'{family["outputs"]:.1e}', f'{family["gradients"]:.1e}', 'every bit' if family['written_back'] else 'NO']
    for name, family in sorted(found.items())
  ]
  headers = ['family', 'stack', 'objective', 'models compared', 'outputs in', 'gradients in', 'tensors out']
  table = common.markdown_table(headers, rows)
  common.write('families', {'families': found}, table, 'python -m benchmarks.families')
  readme = common.ROOT / 'README.md'
  text = re.sub(r'(<!-- families -->\n).*?(\n<!-- -->)', rf'\g<1>{table}\g<2>', readme.read_text(), flags=re.DOTALL)
  readme.write_text(text)


if __name__ == '__main__':
  main()
