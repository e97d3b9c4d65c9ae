"""Every family against transformers: loss, outputs and the gradient of each parameter; and back, bit for bit."""

import pytest

from tests.interop import goldens, parity

# Variants of models that the others are near to; experts take several times as long as a dense layer.
_EXPERTS = ('deepseek', 'deepseek_yarn', 'gpt_oss', 'mixtral', 'qwen3_moe', 'qwen3_moe_window', 'switch_full')
_PLAIN = ('gpt2_untied', 'gpt_neox_sequential', 'llama_biases', 'llama_tied', 'llama_linear', 'llama_dynamic')
_SLOW = ('bart_scaled', 'bert_untied', 'modernbert_biases', 'roberta', 't5_v11', 'xlnet', *_EXPERTS, *_PLAIN)


@pytest.mark.parametrize(
  'name', [pytest.param(name, marks=[pytest.mark.slow] * (name in _SLOW)) for name in goldens.NAMES]
)
def test_equals_transformers(name, tmp_path):
  errors = parity.measure(name, tmp_path)
  assert errors.loss <= 1e-5
  assert {'logits'} <= errors.outputs.keys() and max(errors.outputs.values()) <= 1e-4, errors.outputs
  worst = max(errors.gradients, key=errors.gradients.get)
  assert errors.gradients[worst] <= 1e-3, f'{worst}: {errors.gradients[worst]}'


@pytest.mark.parametrize('with_origin', [True, False])
@pytest.mark.parametrize('name', goldens.NAMES)
def test_every_tensor_and_field_comes_back(name, with_origin, tmp_path):
  assert parity.comes_back(name, tmp_path, with_origin)
