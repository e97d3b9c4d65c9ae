"""What a run may change when it goes on."""

import json
import pathlib

import pytest

from training import configs, resuming
from training.loop import Progress

OLD = pathlib.Path(__file__).parents[1] / 'golden' / 'old_config.json'
RUN = ('optimizer.learning_rate=1.0', 'optimizer.final_fraction=0.1', 'optimizer.warmup=10', 'train.steps=100')
SHORT, LONG = ('train.steps=100',), ('train.steps=200',)


def config(*overrides):
  return configs.load('configs/base.py', [*RUN, *overrides])


def check(before, after, step=50, bad_steps=0, epoch_steps=None):
  return resuming.check_length(config(*before), config(*after), epoch_steps, Progress(step, bad_steps))


@pytest.fixture
def workdir(tmp_path):
  def write(values):
    (tmp_path / 'config.json').write_text(json.dumps(values))
    return tmp_path

  return write


def test_a_directory_without_a_run_has_nothing_to_compare(tmp_path):
  assert resuming.check_same_run(config(), tmp_path) is None


def test_how_a_run_is_watched_and_computed_may_change(workdir):
  directory = workdir(configs.to_json(config()))
  changed = (
    'train.steps=7',
    'train.keep_last=9',
    'mesh.fsdp=8',
    'zero_stage=3',
    'model.remat=full',
    'model.layer_loop=scan',
    'model.attention.implementation=reference',
    'data.num_workers=3',
  )
  assert resuming.check_same_run(config(*changed), directory) == config()


@pytest.mark.parametrize(
  'override, said',
  [
    ('model.attention.dropout_rate=0.5', 'model.attention.dropout_rate was 0.0 and is 0.5'),
    ("optimizer.warmup={'share': 0.1}", "optimizer.warmup was 10 and is {'share': 0.1}"),
    ('seed=3', 'seed was 0 and is 3'),
  ],
)
def test_what_decides_the_result_may_not_change(workdir, override, said):
  with pytest.raises(configs.ConfigError, match='Give the same values to resume it') as error:
    resuming.check_same_run(config(override), workdir(configs.to_json(config())))
  assert said in str(error.value)


def test_the_run_of_an_older_version_is_the_same_run(workdir):
  directory = workdir(json.loads(OLD.read_text()))
  same = configs.from_json(json.loads(OLD.read_text()))
  assert resuming.check_same_run(same, directory) == same
  same.model.attention.qk_norm = False
  with pytest.raises(configs.ConfigError, match='model.attention.qk_norm was True and is False'):
    resuming.check_same_run(same, directory)


@pytest.mark.parametrize('schedule', ['linear', 'cosine', 'wsd'])
def test_a_new_length_needs_to_be_allowed_where_the_learning_rate_follows_it(schedule):
  keys = (f'optimizer.schedule={schedule}', 'optimizer.decay=20')
  for before, after in ((SHORT, LONG), (LONG, SHORT)):
    with pytest.raises(configs.ConfigError, match='--config.train.allow_new_length=True'):
      check((*keys, *before), (*keys, *after))
    assert check((*keys, *before), (*keys, *after, 'train.allow_new_length=True'))


@pytest.mark.parametrize('schedule', ['constant', 'inverse_sqrt', 'step', 'exponential'])
def test_a_new_length_is_free_where_the_learning_rate_does_not_follow_it(schedule):
  keys = (f'optimizer.schedule={schedule}', 'optimizer.decay=20')
  assert check((*keys, *SHORT), (*keys, *LONG)) == ''


@pytest.mark.parametrize(
  'keys',
  [
    ('optimizer.schedule=constant', "optimizer.warmup={'share': 0.1}"),
    ('optimizer.schedule=step', "optimizer.decay={'share': 0.1}"),
  ],
)
def test_a_share_of_the_run_follows_the_length(keys):
  with pytest.raises(configs.ConfigError, match='allow_new_length'):
    check((*keys, *SHORT), (*keys, *LONG))


def test_what_does_not_change_the_steps_is_free():
  tokens = 100 * config().data.batch_tokens
  assert check(SHORT, (f"train.steps={{'tokens': {tokens}}}",)) == ''
  assert check(SHORT, ("train.steps={'epochs': 4}",), epoch_steps=25) == ''
  assert check(SHORT, LONG, step=0) == '', 'nothing has been trained yet'
  with pytest.raises(configs.ConfigError, match=r"train.steps was 100 and is {'epochs': 5.0}"):
    check(SHORT, ("train.steps={'epochs': 5}",), epoch_steps=25)


def test_what_happens_to_the_learning_rate_is_said():
  """Linear from 1 at step 10 down to 0.1 at the end; two steps were not finite and did not count."""
  keys = ('optimizer.schedule=linear', 'train.allow_new_length=True')
  said = check((*keys, *SHORT), (*keys, *LONG), step=57, bad_steps=2)
  assert said == (
    'train.steps was 100 and is 200: after step 57 the learning rate would have been 0.55 and becomes '
    '0.787, in the end, at step 200, 0.1'
  )


@pytest.mark.parametrize(
  'overrides, step, said',
  [
    ((), 100, 'raise train.steps and set train.allow_new_length=True'),
    (('optimizer.schedule=constant',), 100, 'raise train.steps to train it longer'),
    ((), 60, 'raise train.early_stopping_patience'),
  ],
)
def test_a_finished_run_is_told_how_to_go_on(overrides, step, said):
  assert said in resuming.how_to_go_on(config(*overrides), Progress(step), 100)
