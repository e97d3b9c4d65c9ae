import pytest

from tests.house import regenerate

EXPERIMENTS = {file: docstring for file, docstring in regenerate.experiments().items() if file != 'configs/base.py'}


@pytest.mark.parametrize('path', regenerate.paths())
def test_resolved_configs_are_what_they_were(path):
  golden = regenerate.golden_file(path)
  assert golden.exists() and regenerate.resolved(path) == golden.read_text(), (
    f'{path} resolves to something else now. If that is meant: python -m tests.house.regenerate, and commit the diff'
  )


def test_no_golden_file_has_lost_its_config():
  assert set(regenerate.GOLDEN.glob('*.json')) == {regenerate.golden_file(path) for path in regenerate.paths()}, (
    'run python -m tests.house.regenerate'
  )


@pytest.mark.parametrize('file', EXPERIMENTS)
def test_a_config_file_says_how_it_is_run(file):
  assert f'python train.py --config={file}' in EXPERIMENTS[file], f'{file} needs a docstring with the exact command'
