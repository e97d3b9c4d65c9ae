import json
import pathlib

import pytest

from configs import base
from training import configs

BASE = 'configs/base.py'
# As a run wrote it when groups had no groups.
OLD = json.loads((pathlib.Path(__file__).parents[1] / 'golden' / 'old_config.json').read_text())


def refusal(path=BASE, *overrides):
  with pytest.raises(configs.ConfigError) as error:
    configs.load(path, overrides)
  return str(error.value)


@pytest.mark.parametrize(
  'override, group, key, expected',
  [
    ('--config.train.steps=40', 'train', 'steps', 40),
    ('train.steps=40', 'train', 'steps', 40),
    ("optimizer.warmup={'share': 0.1}", 'optimizer', 'warmup', {'share': 0.1}),
    ('optimizer.warmup={"epochs": 2}', 'optimizer', 'warmup', {'epochs': 2}),
    ('optimizer.learning_rate=1', 'optimizer', 'learning_rate', 1.0),
    ('optimizer.learning_rate=3e-4', 'optimizer', 'learning_rate', 3e-4),
    ('--config.model.attention.qk_norm=True', 'model.attention', 'qk_norm', True),
    ('mesh.data=-1', 'mesh', 'data', -1),
    ('data.path=2024', 'data', 'path', '2024'),
    ("data.path='a b.txt'", 'data', 'path', 'a b.txt'),
    ('data.path=a=b', 'data', 'path', 'a=b'),
    ('data.path=', 'data', 'path', ''),
    ("train.sample_prompts=['a', 'b']", 'train', 'sample_prompts', ('a', 'b')),
    ("data.mixture=[{'corpus': 'text', 'weight': 1}]", 'data', 'mixture', ({'corpus': 'text', 'weight': 1.0},)),
  ],
)
def test_overrides_take_the_type_of_the_default(override, group, key, expected):
  value = configs.load(BASE, [override])[group][key]
  assert value == expected and type(value) is type(expected)


def test_top_level_keys_and_the_last_override_win():
  config = configs.load(BASE, ['seed=3', '--config.seed=4', '--config.zero_stage=3'])
  assert (config.seed, config.zero_stage) == (4, 3)


@pytest.mark.parametrize(
  'override, said',
  [
    ('train.stps=3', "unknown key 'train.stps'; did you mean 'train.steps'?; group 'train' has allow_new_length"),
    ('modle.num_layers=3', "did you mean 'model.num_layers' or 'model.encoder.num_layers'?; the config has data"),
    ('model.learning_rate=3', "did you mean 'optimizer.learning_rate'?; group 'model' has activation"),
    ('learning_rate=3', "did you mean 'optimizer.learning_rate'?"),
    ('model.num_layers.x=3', "did you mean 'model.num_layers'?"),
    ('optimizer.warmup.share=0.1', "did you mean 'optimizer.warmup'?"),
    ('model.qqqqqqqqqq=3', "unknown key 'model.qqqqqqqqqq'; group 'model' has activation"),
    ('model.num_layers=2.0', 'model.num_layers takes a whole number; got 2.0'),
    ('model.num_layers=two', "model.num_layers takes a whole number; got 'two'"),
    ('model.num_layers=True', 'model.num_layers takes a whole number; got True'),
    (
      'model.attention.qk_nrm=1',
      "did you mean 'model.attention.qk_norm'?; group 'model.attention' has bias, context_parallel",
    ),
    (
      'model.implementation=auto',
      "mean 'model.moe.implementation' or 'model.attention.implementation'?; group 'model'",
    ),
    ('dropout_rate=0.1', "did you mean 'model.dropout_rate' or"),
    ('model.attention=3', 'model.attention is a group; set one of its keys bias, context_parallel'),
    ('model.attention.qk_norm=1', 'model.attention.qk_norm takes True or False; got 1'),
    ('model.attention.qk_norm=true', "model.attention.qk_norm takes True or False; got 'true'"),
    ('model.attention.implementation=fast', 'does not exist; choose one of auto, reference, blockwise, cudnn, hopper'),
    ('optimizer.learning_rate=fast', "optimizer.learning_rate takes a number; got 'fast'"),
    ('optimizer.learning_rate=1e999', 'takes a finite number; got inf'),
    ('optimizer.learning_rate=False', 'optimizer.learning_rate takes a number; got False'),
    ('train.sample_prompts=hello', "train.sample_prompts takes a tuple; got 'hello'"),
    ('train.sample_prompts=[1]', 'train.sample_prompts[0] takes a text; got 1'),
    ('optimizer.warmup=-1', 'optimizer.warmup=-1 must be at least 0; for example --config.optimizer.warmup=100'),
    ("optimizer.warmup={'steps': 1, 'tokens': 2}", 'exactly one of the units steps, tokens, examples, epochs, share'),
    ('train=3', 'train is a group; set one of its keys allow_new_length'),
    ('train.steps', "'train.steps' changes no key; type --config.GROUP.KEY=VALUE"),
    ('--train.steps=3', "'--train.steps=3' changes no key"),
  ],
)
def test_mistakes_in_overrides_are_told_in_words(override, said):
  assert said in refusal(BASE, override)


def test_a_missing_file_is_answered_with_those_that_exist():
  said = refusal('configs/quikstart.py:tiny')
  assert "no config file 'configs/quikstart.py'; did you mean 'configs/quickstart.py'?" in said
  assert 'there are configs/' in said and 'configs/base.py, configs/' in said and 'configs/llama.py, configs/' in said
  assert 'no config file' in refusal('configs') and 'no config file' in refusal('nowhere/x.py')


def test_an_unknown_variant_is_answered_by_the_file():
  assert "configs/base.py has no variant 'tiny'" in refusal('configs/base.py:tiny')


@pytest.mark.parametrize(
  'line, said',
  [
    ('config.model.num_layrs = 3', "unknown key 'model.num_layrs'; did you mean model.num_layers?"),
    ('config.model.qk_norm = True', "unknown key 'model.qk_norm': it is 'model.attention.qk_norm' now"),
    ('config.model.num_layers = 2.5', 'mine.py: model.num_layers takes a whole number; got 2.5'),
    ('config.train.steps = -3', 'train.steps=-3 must be at least 1'),
    ('config.optimizer.decay["share"] = 3', "optimizer.decay['share']=3 must be at least 0 and at most 1"),
    ('config = 3', 'must return a config made from configs/base.py; got 3'),
    ('from ml_collections import ConfigDict; config = ConfigDict({"seed": 1})', 'mine.py lacks data.augmentation.'),
    ('config.models.num_layers = 2', 'models'),
  ],
)
def test_mistakes_in_a_file_are_told_in_words(tmp_path, line, said):
  file = tmp_path / 'mine.py'
  file.write_text(
    f'from configs import base\ndef get_config(variant):\n  config = base.get_config()\n  {line}\n  return config\n'
  )
  assert said in refusal(str(file))


def test_a_loaded_config_is_locked():
  config = configs.load(BASE)
  with pytest.raises(AttributeError):
    config.model.num_layrs = 3


@pytest.mark.parametrize('path', ['configs/quickstart.py', 'configs/gpt2.py', 'configs/llama.py:8b'])
def test_json_round_trips_exactly(path):
  config = configs.load(
    path,
    [
      "optimizer.warmup={'share': 0.1}",
      'optimizer.learning_rate=0.1',
      "data.mixture=({'corpus': 'text', 'path': 'x', 'weight': 0.3},)",
    ],
  )
  written = json.dumps(configs.to_json(config))
  read = configs.from_json(json.loads(written))
  assert read == config and read.is_locked and json.dumps(configs.to_json(read)) == written
  assert type(read.train.sample_prompts) is tuple and type(read.optimizer.decay) is dict


@pytest.mark.parametrize(
  'change, said',
  [
    (lambda values: values['model'].update(flavour=1), 'has unknown model.flavour'),
    (lambda values: values.update(mesh=3), 'mesh is a group with keys data'),
    (lambda values: values['model'].update(num_layers='4'), "model.num_layers takes a whole number; got '4'"),
    (lambda values: values['model'].update(qk_norm=True), 'has both model.qk_norm and model.attention.qk_norm'),
  ],
)
def test_a_config_that_no_version_wrote_is_refused(change, said):
  values = configs.to_json(configs.load(BASE))
  change(values)
  with pytest.raises(configs.ConfigError) as error:
    configs.from_json(values)
  assert said in str(error.value)


def test_the_config_of_an_older_version_is_read_under_the_new_names(caplog):
  config = configs.from_json(OLD)
  values = configs.flat(config)
  written = {
    f'{group}.{key}': value for group, keys in OLD.items() if isinstance(keys, dict) for key, value in keys.items()
  }
  for key, value in written.items():
    assert values[base.MOVED.get(key, key)] == (tuple(value) if isinstance(value, list) else value), key
  assert (config.model.attention.qk_norm, config.model.attention.dropout_rate) == (True, 0.125)
  added = set(values) - set(written) - set(base.MOVED.values()) - set(OLD)
  [line] = [record.getMessage() for record in caplog.records]
  assert line.startswith('config.json is of an older version; it goes on as before with ')
  assert all(f'{key}={values[key]}' in line for key in added) and 'train.allow_new_length=False' in line


def test_the_config_of_this_version_is_read_without_a_word(caplog):
  configs.from_json(configs.to_json(configs.load(BASE)))
  assert not caplog.records


def test_an_added_key_takes_the_value_that_means_as_before(tmp_path, monkeypatch):
  """As if the default were new, and older versions had behaved like another value."""
  source = pathlib.Path(base.__file__).read_text()
  (tmp_path / 'configs').mkdir()
  (tmp_path / BASE).write_text(source.replace('AS_BEFORE = {}', "AS_BEFORE = {'model.norm': 'layernorm'}"))
  monkeypatch.chdir(tmp_path)
  values = configs.to_json(configs.load(BASE))
  del values['model']['norm'], values['mesh']
  config = configs.from_json(values)
  assert (config.model.norm, config.mesh.data) == ('layernorm', -1)


def test_moved_keys_lead_to_keys_that_exist():
  paths = configs.flat(base.get_config())
  assert set(base.MOVED.values()) <= set(paths) and not set(base.MOVED) & set(paths)
  assert set(base.AS_BEFORE) <= set(paths)


@pytest.mark.parametrize('old, new', base.MOVED.items())
def test_an_old_name_is_answered_with_the_new_one(old, new):
  assert f'unknown key {old!r}: it is {new!r} now; type --config.{new}=VALUE' in refusal(BASE, f'{old}=1')


def test_files_are_found_from_any_directory(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert configs.load('configs/quickstart.py:tiny').seed == 0
  assert not list(pathlib.Path(tmp_path).iterdir())
