"""convert.py on golden models: from transformers to a run and back, and what it refuses."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import convert
import interop
import model as model_lib
import training
from tests.interop import goldens


@pytest.fixture
def command(monkeypatch, capsys):
  """Runs convert.py: (status, standard output, standard error)."""

  def run(*arguments):
    monkeypatch.setattr(sys, 'argv', ['convert.py', *map(str, arguments)])
    try:
      status = convert.main()
    except SystemExit as stopped:
      status = stopped.code
    return status, *capsys.readouterr()

  return run


def stored(directory):
  tensors = {}
  for file in directory.glob('*.safetensors'):
    tensors |= safetensors.numpy.load_file(file)
  return tensors


def test_from_transformers_to_a_run_and_back(tmp_path, command):
  source, workdir, target = goldens.write('gpt2', tmp_path / 'gpt2'), tmp_path / 'run', tmp_path / 'back'
  template = b'{{ messages }}\r\n\xf0\x9f\x8c\x8d'
  (source / 'chat_template.jinja').write_bytes(template)
  status, out, err = command(f'--from_hf={source}', f'--workdir={workdir}')
  assert (status, err) == (0, '') and 'gpt2, 4,848 parameters' in out
  run, golden = training.load_run(workdir), goldens.load('gpt2')
  tokens = jnp.asarray(golden['tokens'][:1], jnp.int32)
  stream = model_lib.Stream(tokens, jnp.asarray(golden['positions'][:1], jnp.int32), jnp.ones_like(tokens))
  logits = jax.jit(lambda params: run.model.logits(params, run.model.hidden(params, stream)[0]))(run.params)
  np.testing.assert_allclose(logits, golden['logits'][:1], atol=1e-4 * np.abs(golden['logits']).max())
  assert run.tokenizer.encode('7 12').tolist() == [7, 12] and run.tokenizer.eos_id == 3

  assert command(f'--workdir={workdir}', f'--to_hf={target}', '--max_shard_size=10KB')[0] == 0
  assert (target / 'model.safetensors.index.json').exists()
  before, after = goldens.arrays(golden, 'weights'), stored(target)
  assert after.keys() == before.keys()
  assert all(after[name].tobytes() == before[name].tobytes() for name in before)
  given, written = (json.loads((folder / 'config.json').read_text()) for folder in (source, target))
  assert written == given
  assert (target / 'chat_template.jinja').read_bytes() == template
  assert (target / 'README.md').read_text().startswith('---\nlibrary_name: "transformers"\n')

  status, _, err = command(f'--workdir={workdir}', f'--to_hf={target}')
  assert status == 1 and 'is there already' in err and err.count('\n') == 1
  status, _, err = command(f'--from_hf={source}', f'--workdir={workdir}')
  assert status == 1 and 'holds a run' in err


def test_bfloat16_weights_come_back_as_they_were(tmp_path):
  def narrow(tensors):
    return {name: array.astype(jnp.bfloat16) for name, array in tensors.items()}

  pretrained = interop.read(goldens.write('llama', tmp_path / 'llama', narrow))
  params = {path: leaf for path, leaf in flat(pretrained.params()).items()}
  read = lambda path, index, dtype: np.asarray(params[path])[index].astype(dtype)
  origin = interop.Origin.of(pretrained)
  interop.write(tmp_path / 'back', pretrained.config, pretrained.tokenizer, read, origin, card=lambda family: '')
  before, after = (interop.files.tensors(tmp_path / name) for name in ('llama', 'back'))
  assert all(before[name].read().tobytes() == after[name].read().tobytes() for name in before)
  assert json.loads((tmp_path / 'back/config.json').read_text())['dtype'] == 'bfloat16'


def flat(tree):
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
  }


def test_parameters_are_read_into_a_mesh(tmp_path):
  pretrained = goldens.pretrained('llama', tmp_path)
  mesh = jax.make_mesh((2, 2), ('fsdp', 'data'))
  specs = {2: (None, 'fsdp'), 3: (None, ('fsdp', 'data')), 4: (None, 'data', None, None)}
  whole = pretrained.params()
  shardings = jax.tree.map(
    lambda leaf: jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*specs.get(leaf.ndim, ()))), whole
  )
  placed = pretrained.params(shardings)
  assert jax.tree.all(jax.tree.map(lambda leaf, sharding: leaf.sharding == sharding, placed, shardings))
  assert jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b)), jax.device_get(placed), whole))


def test_pooled_heads_are_the_mean_of_those_they_stand_for(tmp_path):
  pretrained = goldens.pretrained('llama_tied', tmp_path)
  few = interop.grouped(pretrained, 2)
  many, pooled = (flat(model.params()) for model in (pretrained, few))
  expected = np.asarray(many['layers/attention/key/kernel'])
  expected = (expected[:, :, [0, 2]] + expected[:, :, [1, 3]]) / 2
  np.testing.assert_allclose(pooled['layers/attention/key/kernel'], expected, rtol=1e-6)
  assert few.config.model.num_kv_heads == 2 and pretrained.config.model.num_kv_heads == 4
  with pytest.raises(ValueError, match='num_kv_heads=3 does not divide the 4'):
    interop.grouped(pretrained, 3)


def without(name):
  return lambda tensors: {key: value for key, value in tensors.items() if key != name}


def with_more(name, shape):
  return lambda tensors: tensors | {name: np.zeros(shape, np.float32)}


@pytest.mark.parametrize(
  'change, fields, words',
  [
    (None, {'rope_scaling': {'rope_type': 'longrope', 'factor': 2.0}, 'rope_parameters': None}, "type='longrope'"),
    (None, {'rope_parameters': {'rope_type': 'linear'}}, 'lacks factor'),
    (None, {'rope_parameters': {'rope_type': 'default', 'swirl': 3}}, 'rope_parameters.swirl=3'),
    (None, {'hidden_act': 'mish'}, "hidden_act='mish' cannot be honoured; allowed is 'silu'"),
    (None, {'fancy_gate': True}, 'fancy_gate=True is not known'),
    (None, {'quantization_config': {'bits': 4}}, "quantization_config={'bits': 4} cannot be honoured"),
    (None, {'architectures': ['LlamaForTokenClassification']}, 'LlamaForTokenClassification'),
    (None, {'model_type': 'mamba'}, "model_type='mamba'"),
    (None, {'num_hidden_layers': 4}, 'lacks the tensors model.layers.3.input_layernorm.weight'),
    (None, {'num_hidden_layers': 2}, 'has, beyond its config.json, the tensors model.layers.2'),
    (None, {'intermediate_size': 21}, 'is [20, 16], but its config.json makes it [21, 16]'),
    (without('lm_head.weight'), {}, 'lacks the tensors lm_head.weight'),
    (with_more('model.layers.0.self_attn.q_proj.bias', 16), {}, 'the tensors model.layers.0.self_attn.q_proj.bias'),
    (lambda tensors: {key: value.astype(np.int8) for key, value in tensors.items()}, {}, 'quantised weights'),
  ],
)
def test_what_cannot_be_honoured_is_named_in_one_line(tmp_path, command, change, fields, words):
  source = goldens.write('llama', tmp_path / 'llama', change, **fields)
  status, out, err = command(f'--from_hf={source}', f'--workdir={tmp_path / "run"}')
  assert status == 1 and words in err and err.count('\n') == 1 and out == ''
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  'name, fields, words',
  [
    (
      'gpt_oss',
      {'quantization_config': {'quant_method': 'mxfp4'}},
      "'mxfp4', and quantised weights are not read; write",
    ),
    ('gpt_oss', {'swiglu_limit': 5.0}, 'swiglu_limit=5.0'),
    ('gpt_oss', {'experts_per_token': 3}, 'experts_per_token=3'),
    ('mixtral', {'router_jitter_noise': 0.1}, 'router_jitter_noise=0.1'),
    ('qwen3_moe', {'mlp_only_layers': [1, 2], 'num_hidden_layers': 6}, 'mlp_only_layers=.1, 2.'),
    ('deepseek', {'scoring_func': 'softmax'}, "scoring_func='softmax'"),
    ('deepseek', {'num_key_value_heads': 2}, 'num_key_value_heads=2'),
    ('deepseek', {'head_dim': 9}, 'head_dim=9 cannot be honoured; allowed is 4'),
  ],
)
def test_what_families_with_experts_cannot_honour_is_named(name, fields, words, tmp_path):
  with pytest.raises(ValueError, match=words):
    interop.read(goldens.write(name, tmp_path, **fields))


def test_tied_weights_that_are_stored_twice_must_agree(tmp_path):
  table = goldens.arrays(goldens.load('gpt2'), 'weights')['transformer.wte.weight']
  more = lambda factor: lambda tensors: tensors | {'lm_head.weight': factor * table}
  interop.read(goldens.write('gpt2', tmp_path / 'same', more(1)))
  with pytest.raises(ValueError, match='lm_head.weight is not equal to transformer.wte.weight'):
    interop.read(goldens.write('gpt2', tmp_path / 'other', more(2)))


def test_names_without_the_prefix_and_masks_of_the_hub_are_known(tmp_path):
  def as_on_the_hub(tensors):
    tensors = {name.removeprefix('transformer.'): array for name, array in tensors.items()}
    return tensors | {'h.0.attn.bias': np.tril(np.ones((1, 1, 16, 16), np.uint8))}

  interop.read(goldens.write('gpt2', tmp_path, as_on_the_hub))


def test_a_bert_of_the_first_release_without_a_head_keeps_its_pooler(tmp_path, command):
  def released(tensors):
    tensors = {name.removeprefix('bert.'): array for name, array in tensors.items() if not name.startswith('cls')}
    return tensors | {'embeddings.position_ids': np.arange(16)[None]}

  def old_names(tensors):
    old = {'LayerNorm.weight': 'LayerNorm.gamma', 'LayerNorm.bias': 'LayerNorm.beta'}
    for new, name in old.items():
      tensors = {key.replace(new, name): array for key, array in tensors.items()}
    return tensors

  change = lambda tensors: old_names(released(tensors))
  source = goldens.write('bert', tmp_path / 'bert', change, architectures=['BertModel'])
  assert command(f'--from_hf={source}', f'--workdir={tmp_path / "run"}')[0] == 0
  run, golden = training.load_run(tmp_path / 'run'), goldens.load('bert')
  assert run.config.objective.name == 'masked'
  fields = ('tokens', 'positions', 'mask')
  stream = model_lib.Stream(*(golden[key] for key in fields), token_types=golden['token_types'])
  hidden, _ = jax.jit(run.model.hidden)(run.params, stream)
  np.testing.assert_allclose(hidden * golden['mask'][:, :, None], golden['hidden'], atol=1e-4)

  assert command(f'--workdir={tmp_path / "run"}', f'--to_hf={tmp_path / "back"}')[0] == 0
  before, after = released(goldens.arrays(golden, 'weights')), stored(tmp_path / 'back')
  assert before.keys() - after.keys() == {'embeddings.position_ids'} and 'pooler.dense.weight' in after
  assert all(after[name].tobytes() == before[name].tobytes() for name in after)


def test_a_bert_without_token_types_is_none(tmp_path):
  config = goldens.pretrained('bert', tmp_path).config.copy_and_resolve_references()
  config.model.token_types = 0
  with pytest.raises(ValueError, match='model.token_types=0 cannot be written as BERT'):
    interop.writing.choose(config, {}, 'bert')


def test_a_bert_without_a_head_needs_the_pooler_it_came_with(tmp_path):
  config = goldens.pretrained('bert', tmp_path).config.copy_and_resolve_references()
  config.model.update(head_transform=False, head_bias=False)
  with pytest.raises(ValueError, match='BertModel has a pooler, which this model has not'):
    interop.write(tmp_path / 'back', config, None, None, interop.Origin(), card=None, family='bert')


def test_positions_of_roberta_begin_behind_those_of_padding():
  original = {'max_position_embeddings': 514, 'pad_token_id': 1}
  config = interop.reading.to_config(interop.FAMILIES['roberta'], original, ())
  assert (config.model.position_offset, config.model.max_length) == (2, 512)


@pytest.mark.parametrize(
  'name, fields, words',
  [
    ('bert', {'position_embedding_type': 'relative_key'}, "position_embedding_type='relative_key'"),
    ('bert', {'is_decoder': True}, 'is_decoder=True'),
    ('roberta', {'hidden_act': 'relu'}, "hidden_act='relu'"),
    ('roberta', {'pad_token_id': None}, 'pad_token_id=None'),
    ('modernbert', {'norm_bias': True}, 'norm_bias=True'),
    ('modernbert', {'classifier_activation': 'relu'}, "classifier_activation='relu'"),
    ('xlnet', {'attn_type': 'uni'}, "attn_type='uni'"),
    ('xlnet', {'bi_data': True}, 'bi_data=True'),
    ('xlnet', {'clamp_len': 5}, 'clamp_len=5'),
  ],
)
def test_an_encoder_that_cannot_be_honoured_is_named(name, fields, words):
  original = json.loads(str(goldens.load(name)['config'])) | fields
  with pytest.raises(ValueError, match=f'^{words} cannot be honoured'):
    interop.reading.to_config(interop.reading.recognise(original, ''), original, ())


@pytest.mark.parametrize('key, value', [('norm', 'layernorm'), ('positions', 'sinusoidal'), ('qk_norm', True)])
def test_a_model_that_no_family_holds_is_refused_with_its_key(tmp_path, key, value):
  pretrained = goldens.pretrained('llama', tmp_path)
  config = pretrained.config.copy_and_resolve_references()
  group = config.model.attention if key == 'qk_norm' else config.model
  group[key] = value
  with pytest.raises(ValueError, match=f'model.*{key}={value!r} cannot be written as llama'):
    interop.writing.choose(config, pretrained.original)


def test_bad_usage(command, tmp_path):
  assert command(f'--workdir={tmp_path}')[0] == 2
  assert command(f'--workdir={tmp_path}', '--from_hf=x', '--family=llama')[0] == 2
  assert command(f'--workdir={tmp_path}', '--to_hf=x', '--max_shard_size=many')[0] == 2
  status, _, err = command(f'--workdir={tmp_path}', '--to_hf=x')
  assert status == 1 and 'holds no run' in err
