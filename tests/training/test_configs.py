import json
import pathlib

import pytest

from training import configs

BASE = 'configs/base.py'


def refusal(path=BASE, *overrides):
  with pytest.raises(configs.ConfigError) as error:
    configs.load(path, overrides)
  return str(error.value)


@pytest.mark.parametrize('override, group, key, expected', [
    ('--config.train.steps=40', 'train', 'steps', 40),
    ('train.steps=40', 'train', 'steps', 40),
    ("optimizer.warmup={'share': 0.1}", 'optimizer', 'warmup', {'share': 0.1}),
    ('optimizer.warmup={"epochs": 2}', 'optimizer', 'warmup', {'epochs': 2}),
    ('optimizer.learning_rate=1', 'optimizer', 'learning_rate', 1.0),
    ('optimizer.learning_rate=3e-4', 'optimizer', 'learning_rate', 3e-4),
    ('model.tie_embeddings=True', 'model', 'tie_embeddings', True),
    ('mesh.data=-1', 'mesh', 'data', -1),
    ('data.path=2024', 'data', 'path', '2024'),
    ("data.path='a b.txt'", 'data', 'path', 'a b.txt'),
    ('data.path=a=b', 'data', 'path', 'a=b'),
    ('data.path=', 'data', 'path', ''),
    ("train.sample_prompts=['a', 'b']", 'train', 'sample_prompts', ('a', 'b')),
    ("data.mixture=[{'corpus': 'text', 'weight': 1}]", 'data', 'mixture', ({'corpus': 'text', 'weight': 1},)),
])
def test_overrides_take_the_type_of_the_default(override, group, key, expected):
  value = configs.load(BASE, [override])[group][key]
  assert value == expected and type(value) is type(expected)


def test_top_level_keys_and_the_last_override_win():
  config = configs.load(BASE, ['seed=3', '--config.seed=4', '--config.zero_stage=3'])
  assert (config.seed, config.zero_stage) == (4, 3)


@pytest.mark.parametrize('override, said', [
    ('train.stps=3', "unknown key 'train.stps'; did you mean 'train.steps'?; group 'train' has checkpoint_every"),
    ('modle.num_layers=3', "did you mean 'model.num_layers'?; the config has data, init_from"),
    ('model.learning_rate=3', "did you mean 'optimizer.learning_rate'?; group 'model' has activation"),
    ('learning_rate=3', "did you mean 'optimizer.learning_rate'?"),
    ('model.num_layers.x=3', "did you mean 'model.num_layers'?"),
    ('optimizer.warmup.share=0.1', "did you mean 'optimizer.warmup'?"),
    ('model.qqqqqqqqqq=3', "unknown key 'model.qqqqqqqqqq'; group 'model' has activation"),
    ('model.num_layers=2.0', 'model.num_layers takes a whole number; got 2.0'),
    ('model.num_layers=two', "model.num_layers takes a whole number; got 'two'"),
    ('model.num_layers=True', 'model.num_layers takes a whole number; got True'),
    ('model.attention.qk_norm=1', 'model.attention.qk_norm takes True or False; got 1'),
    ('model.attention.qk_norm=true', "model.attention.qk_norm takes True or False; got 'true'"),
    ('optimizer.learning_rate=fast', "optimizer.learning_rate takes a number; got 'fast'"),
    ('optimizer.learning_rate=1e999', 'takes a finite number; got inf'),
    ('optimizer.learning_rate=False', 'optimizer.learning_rate takes a number; got False'),
    ('train.sample_prompts=hello', "train.sample_prompts takes a tuple such as ('first', 'second'); got 'hello'"),
    ('train.sample_prompts=[1]', 'train.sample_prompts takes a tuple of str; got [1]'),
    ('optimizer.warmup=-1', 'optimizer.warmup: a duration in steps is finite and not negative; got -1'),
    ("optimizer.warmup={'steps': 1, 'tokens': 2}", 'exactly one of the units steps, tokens, examples, epochs, share'),
    ('train=3', 'train is a group; set one of its keys checkpoint_every'),
    ('train.steps', "'train.steps' changes no key; type --config.GROUP.KEY=VALUE"),
    ('--train.steps=3', "'--train.steps=3' changes no key"),
])
def test_mistakes_in_overrides_are_told_in_words(override, said):
  assert said in refusal(BASE, override)


def test_a_missing_file_is_answered_with_those_that_exist():
  said = refusal('configs/quikstart.py:tiny')
  assert "no config file 'configs/quikstart.py'; did you mean 'configs/quickstart.py'?" in said
  assert 'configs/base.py, configs/gpt2.py, configs/llama.py, configs/quickstart.py' in said
  assert 'no config file' in refusal('configs') and 'no config file' in refusal('nowhere/x.py')


def test_an_unknown_variant_is_answered_by_the_file():
  assert "configs/base.py has no variant 'tiny'" in refusal('configs/base.py:tiny')


@pytest.mark.parametrize('line, said', [
    ('config.model.num_layrs = 3', 'Did you mean "num_layers"'),
    ('config.model.num_layers = 2.5', "Could not override field 'num_layers'"),
    ('config.train.steps = -3', 'train.steps: a duration in steps is finite and not negative; got -3'),
    ('config = 3', 'must return a config made from configs/base.py; got 3'),
])
def test_mistakes_in_a_file_are_told_in_words(tmp_path, line, said):
  file = tmp_path / 'mine.py'
  file.write_text(f'from configs import base\ndef get_config(variant):\n  config = base.get_config()\n  {line}\n'
                  '  return config\n')
  assert said in refusal(str(file))


def test_a_loaded_config_is_locked():
  config = configs.load(BASE)
  with pytest.raises(AttributeError):
    config.model.num_layrs = 3


@pytest.mark.parametrize('path', ['configs/quickstart.py', 'configs/gpt2.py', 'configs/llama.py:8b'])
def test_json_round_trips_exactly(path):
  config = configs.load(path, ["optimizer.warmup={'share': 0.1}", 'optimizer.learning_rate=0.1',
                               "data.mixture=({'corpus': 'text', 'path': 'x', 'weight': 0.3},)"])
  written = json.dumps(configs.to_json(config))
  read = configs.from_json(json.loads(written))
  assert read == config and read.is_locked and json.dumps(configs.to_json(read)) == written
  assert type(read.train.sample_prompts) is tuple and type(read.optimizer.decay) is dict


@pytest.mark.parametrize('change, said', [
    (lambda values: values['model'].pop('norm'), 'lacks model.norm'),
    (lambda values: values['model'].update(flavour=1), 'has unknown model.flavour'),
    (lambda values: values.pop('mesh'), 'lacks mesh'),
    (lambda values: values.update(mesh=3), 'mesh is a group with keys data'),
    (lambda values: values['model'].update(num_layers='4'), "model.num_layers takes a whole number; got '4'"),
])
def test_the_config_of_another_version_is_refused(change, said):
  values = configs.to_json(configs.load(BASE))
  change(values)
  with pytest.raises(configs.ConfigError) as error:
    configs.from_json(values)
  assert said in str(error.value)


def test_files_are_found_from_any_directory(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert configs.load('configs/quickstart.py:tiny').seed == 0
  assert not list(pathlib.Path(tmp_path).iterdir())
