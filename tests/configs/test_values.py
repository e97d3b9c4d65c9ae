"""What each key of a config takes, and that the choices are what the rooms implement."""

import copy
import importlib
import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import config_dict

import objectives
from configs import base, values
from data import corpora
from data.tokenizers import base as tokenizers_base
from data.tokenizers import training as tokenizer_training
from model import attention, block, families, feed_forward, layers, moe, positions, remat, routing, stack
from pallas_kernels import grouped
from parallel import axes, rules
from precision.policy import RULES
from training import durations, optimizers, schedules

DECLARED = values.declared(base.get_config())


def assign(path, value):
  """The value that a key has after an assignment."""
  config = base.get_config()
  config[path] = value
  return config[path]


def refusal(path, value):
  before = base.get_config()[path]
  config = base.get_config()
  with pytest.raises(ValueError) as error:
    config[path] = value
  assert config[path] == before, 'a value that was refused stayed'
  return str(error.value)


@pytest.mark.parametrize(
  'path, implemented',
  [
    ('zero_stage', rules.ZERO_STAGES),
    ('model.family', families.FAMILIES),
    ('model.positions', positions.POSITIONS),
    ('model.norm', layers.NORMS),
    ('model.norm_position', block.NORM_POSITIONS),
    ('model.activation', (*feed_forward.ACTIVATIONS, *feed_forward.GATED)),
    ('model.rope.scaling', positions.SCALINGS),
    ('model.attention.bias', attention.BIASES),
    ('model.init', layers.INITS),
    ('model.layer_loop', stack.LAYER_LOOPS),
    ('model.remat', remat.KINDS),
    ('model.attention.implementation', ('auto', *importlib.import_module('pallas_kernels.attention')._IMPLEMENTATIONS)),
    ('model.attention.context_parallel', tuple(axes.ATTENTION_EXCHANGES)),
    ('model.moe.router', routing.ROUTERS),
    ('model.moe.exchange', ('auto', *moe.EXCHANGES)),
    ('model.moe.implementation', ('auto', *grouped.IMPLEMENTATIONS)),
    ('data.corpus', (*corpora._READERS, 'mixture')),
    ('data.tokenizer', ('bytes', 'file', *tokenizer_training.TRAINERS)),
    ('data.normalization', tokenizers_base.NORMALIZATIONS),
    ('objective.name', objectives.OBJECTIVES),
    ('optimizer.name', optimizers.NAMES),
    ('optimizer.schedule', schedules.NAMES),
    ('precision.dtype', RULES),
  ],
)
def test_choices_are_what_the_rooms_implement(path, implemented):
  assert sorted(DECLARED[path].choices) == sorted(implemented)


def test_choices_that_no_table_names_are_known():
  """`data.document` and `data.packing` are decided by a comparison in the room; the others are compared above."""
  compared = test_choices_are_what_the_rooms_implement.pytestmark[0].args[1]
  choices = {path for path, value in DECLARED.items() if isinstance(value, values.Choice)}
  assert choices - {path for path, _ in compared} == {'data.document', 'data.packing'}
  assert set(DECLARED['data.mixture'].entry.keys['corpus'].choices) == set(corpora._READERS) - {'pairs'}
  assert values.DURATION_UNITS == durations.UNITS


def test_every_key_is_declared_under_its_own_path():
  def paths(group, prefix=''):
    for key, value in group.items():
      yield from paths(value, f'{prefix}{key}.') if isinstance(value, values.Group) else [prefix + key]

  assert sorted(DECLARED) == sorted(paths(base.get_config()))


@pytest.mark.parametrize('path', DECLARED)
def test_no_key_takes_none_nan_or_infinity(path):
  for value in (None, math.nan, math.inf, -math.inf):
    assert path in refusal(path, value)


@pytest.mark.parametrize('path', DECLARED)
def test_a_key_takes_its_default_and_what_a_refusal_says_to_type(path):
  assert assign(path, DECLARED[path].default) == DECLARED[path].default
  assert f'; for example --config.{path}=' in refusal(path, object())


@pytest.mark.parametrize(
  'path, value, said',
  [
    ('seed', 2**31, 'seed=2147483648 must be at least 0 and at most 2147483647'),
    ('seed', -1, 'seed=-1 must be at least 0'),
    ('zero_stage', 4, 'zero_stage=4 does not exist; choose one of 0, 1, 2, 3'),
    ('zero_stage', False, 'zero_stage=False does not exist'),
    ('model.activation', 'swish', "model.activation='swish' does not exist; choose one of silu, gelu, gelu_tanh, relu"),
    ('model.norm', 'layernrm', 'for example --config.model.norm=layernorm'),
    ('model.num_layers', 0, 'model.num_layers=0 must be at least 1; for example --config.model.num_layers=4'),
    ('model.mlp_dim', -1, 'model.mlp_dim=-1 must be at least 0'),
    ('model.num_layers', True, 'model.num_layers takes a whole number; got True'),
    ('model.num_layers', 2.0, 'model.num_layers takes a whole number; got 2.0'),
    ('model.rope.theta', 0.0, 'model.rope.theta=0.0 must be above 0'),
    ('model.norm_epsilon', -1e-5, 'model.norm_epsilon=-1e-05 must be above 0'),
    ('model.init_scale', -0.02, 'model.init_scale=-0.02 must be at least 0'),
    ('model.attention.dropout_rate', 1, 'model.attention.dropout_rate=1 must be at least 0 and below 1'),
    ('model.gated_mlp', 1, 'model.gated_mlp takes True or False; got 1'),
    ('data.path', 3, 'data.path takes a text; got 3; for example --config.data.path=TEXT'),
    ('data.sequence_length', 0, 'data.sequence_length=0 must be at least 1'),
    ('data.mixture', 3, 'data.mixture takes a tuple; got 3'),
    ('data.mixture', (3,), 'data.mixture[0] takes a mapping such as'),
    ('data.mixture', ({'corpus': 'text'},), "data.mixture[0]={'corpus': 'text'} lacks weight"),
    ('data.mixture', ({'corpus': 'text', 'weight': math.nan},), '[0].weight takes a finite number; got nan'),
    ('data.mixture', ({'corpus': 'text', 'weight': True},), 'data.mixture[0].weight takes a number; got True'),
    ('data.mixture', ({'corpus': 'text', 'weight': 0},), 'data.mixture[0].weight=0 must be above 0'),
    ('data.mixture', ({'corpus': 'mixture', 'weight': 1},), "data.mixture[0].corpus='mixture' does not exist"),
    ('optimizer.learning_rate', 0.0, 'optimizer.learning_rate=0.0 must be above 0'),
    ('optimizer.beta1', 1.0, 'optimizer.beta1=1.0 must be at least 0 and below 1'),
    ('optimizer.clip_norm', -1.0, 'optimizer.clip_norm=-1.0 must be at least 0'),
    ('optimizer.accumulation_steps', 0, 'optimizer.accumulation_steps=0 must be at least 1'),
    ('optimizer.warmup', -1, 'optimizer.warmup=-1 must be at least 0'),
    ('optimizer.warmup', 1.5, 'optimizer.warmup takes a whole number of steps, or a mapping such as'),
    ('optimizer.warmup', True, 'optimizer.warmup takes a whole number of steps'),
    ('optimizer.warmup', {}, 'exactly one of the units steps, tokens, examples, epochs, share'),
    ('optimizer.warmup', {'steps': 1, 'tokens': 2}, 'exactly one of the units'),
    ('optimizer.warmup', {'days': 1}, 'exactly one of the units'),
    ('optimizer.warmup', {'tokens': 1.5}, "optimizer.warmup['tokens'] takes a whole number; got 1.5"),
    ('optimizer.warmup', {'share': 1.5}, "optimizer.warmup['share']=1.5 must be at least 0 and at most 1"),
    ('optimizer.warmup', {'epochs': -1}, "optimizer.warmup['epochs']=-1 must be at least 0"),
    ('optimizer.warmup', {'epochs': math.nan}, 'takes a finite number'),
    ('train.steps', {'share': 0.5}, 'exactly one of the units steps, tokens, examples, epochs; got'),
    ('train.steps', 0, 'train.steps=0 must be at least 1'),
    ('train.log_every', {'epochs': 0.0}, "train.log_every['epochs']=0.0 must be above 0"),
    ('train.keep_last', 0, 'train.keep_last=0 must be at least 1'),
    ('mesh.data', -2, 'mesh.data=-2 must be at least -1'),
  ],
)
def test_what_a_key_does_not_take_is_refused_at_once_in_words(path, value, said):
  assert said in refusal(path, value)


@pytest.mark.parametrize(
  'path, value, stored',
  [
    ('seed', 2**31 - 1, 2**31 - 1),
    ('optimizer.learning_rate', 1, 1.0),
    ('train.sample_prompts', ['a'], ('a',)),
    ('optimizer.warmup', {'epochs': 2}, {'epochs': 2.0}),
    ('optimizer.warmup', {'share': 1}, {'share': 1.0}),
    ('optimizer.decay', 0, 0),
    ('train.steps', {'tokens': 1}, {'tokens': 1}),
    ('train.log_every', {'epochs': 0.1}, {'epochs': 0.1}),
    ('optimizer.warmup', config_dict.ConfigDict({'steps': 3}), {'steps': 3}),
    ('data.mixture', [{'corpus': 'text', 'weight': 1}], ({'corpus': 'text', 'weight': 1.0},)),
  ],
)
def test_a_value_is_kept_in_the_type_of_its_key(path, value, stored):
  kept = assign(path, value)
  assert kept == stored and type(kept) is type(stored)
  if isinstance(stored, dict):
    assert [type(v) for v in kept.values()] == [type(v) for v in stored.values()]


@given(st.one_of(st.integers(), st.floats(), st.booleans(), st.text(max_size=3), st.none()))
def test_a_number_is_within_its_bounds_or_refused(value):
  key = values.number(0.5, at_least=0, below=1)
  within = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1
  if within:
    assert key.check('key', value) == value
  else:
    with pytest.raises(ValueError, match='^key'):
      key.check('key', value)


def test_keys_that_were_not_declared_do_not_exist():
  config = base.get_config()
  for locked in (config, config.unlock()):
    with pytest.raises(AttributeError, match=r"unknown key 'model.nrm'; did you mean model.norm\?; group 'model' has"):
      locked.model.nrm = 'layernorm'
    with pytest.raises(AttributeError, match="'model.qk_norm': it is 'model.attention.qk_norm' now"):
      locked.model.qk_norm = True
    with pytest.raises(AttributeError, match="unknown key 'seeed'"):
      locked['seeed'] = 3


def test_a_group_is_assigned_key_by_key_or_from_its_like():
  config, other = base.get_config(), base.get_config()
  config.model.update({'attention.qk_norm': True, 'num_layers': 2}, attention={'dropout_rate': 0.5})
  assert (config.model.attention.qk_norm, config.model.attention.dropout_rate) == (True, 0.5)
  assert config.model.num_layers == 2
  other.model = config.model
  assert other == config and other.model is not config.model
  other.update(base.get_config())
  assert other == base.get_config()
  for wrong in (3, {'qk_norm': True}):
    with pytest.raises(ValueError, match='model.attention is a group; set one of its keys bias, context_parallel'):
      config.model.attention = wrong


@pytest.mark.parametrize(
  'duplicate',
  [
    copy.deepcopy,
    lambda config: pickle.loads(pickle.dumps(config)),
    lambda config: config.copy_and_resolve_references(),
  ],
  ids=['deepcopy', 'pickle', 'copy_and_resolve_references'],
)
def test_copies_are_their_own_and_as_strict(duplicate):
  config = base.get_config()
  twin = duplicate(config)
  assert twin == config and twin.is_locked
  twin.model.attention.qk_norm = True
  twin.optimizer.warmup = {'share': 0.5}
  assert not config.model.attention.qk_norm and config.optimizer.warmup == 100
  with pytest.raises(ValueError, match='model.attention.dropout_rate=2 must be'):
    twin.model.attention.dropout_rate = 2


def test_references_follow_their_key_and_are_checked():
  config = base.get_config()
  config.model.mlp_dim = config.model.get_ref('embed_dim') * 4
  config.model.embed_dim = 64
  assert config.model.mlp_dim == 256
  assert config.copy_and_resolve_references().model.to_dict()['mlp_dim'] == 256
  with pytest.raises(ValueError, match='model.embed_dim=0 must be at least 1'):
    config.model.embed_dim = 0
  with pytest.raises(ValueError, match='model.num_heads=-64 must be at least 1'):
    config.model.num_heads = config.model.get_ref('embed_dim') * -1
