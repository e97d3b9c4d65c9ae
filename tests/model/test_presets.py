"""Presets: published architectures by name, with the number of parameters that their authors' weights have."""

import importlib
import pathlib

import jax
import pytest

import model as model_lib
from configs import base, families
from model.families import preset

FOLDER = pathlib.Path(families.__file__).parent
# Of the weights that are published: heads and their biases as the family's pre-training has them.
PARAMETERS = {
  'gpt2:124m': 124_439_808,
  'gpt2:1.5b': 1_557_611_200,
  'llama:2-7b': 6_738_415_616,
  'llama:3.1-8b': 8_030_261_248,
  'llama:3.2-1b': 1_235_814_400,
  'mistral:7b': 7_241_732_096,
  'qwen3:0.6b': 596_049_920,
  'gemma3:270m': 268_098_176,
  'gemma3:1b': 999_885_952,
  'gpt_neox:160m': 162_322_944,
  'bloom:560m': 559_214_592,
  'mpt:7b': 6_649_286_656,
  'bert:base': 109_514_298,
  'roberta:base': 124_697_433,
  'modernbert:base': 149_655_232,
  't5:small': 60_506_624,
  't5:1.1-base': 247_577_856,
  'bart:base': 139_420_416 + 50_265,
  'xlnet:base': 116_750_336,
}


@pytest.mark.parametrize('name', PARAMETERS)
def test_a_preset_has_the_parameters_of_the_published_weights(name):
  assert model_lib.create(preset(name)).num_params == PARAMETERS[name]


@pytest.mark.parametrize('file', sorted(FOLDER.glob('[!_]*.py')), ids=lambda file: file.stem)
def test_every_variant_is_a_whole_config_and_a_model(file):
  module = importlib.import_module(f'configs.families.{file.stem}')
  assert len(file.read_text().splitlines()) < 40
  for variant in ('', *module.SIZES):
    config = module.get_config(variant)
    assert set(config) == set(base.get_config())
    model_lib.resolve(config.model)
  with pytest.raises(ValueError, match=f'has no variant .*model.build..{file.stem}:'):
    module.get_config('huge')


def test_a_name_alone_builds_a_model():
  model, params = model_lib.build('bert:tiny', seed=1)
  assert model.num_params == sum(leaf.size for leaf in jax.tree.leaves(params))
  with pytest.raises(ValueError, match="no preset 'gpt5'; there are bart, bert"):
    model_lib.build('gpt5')
