import pytest

from training import configs, validation

TINY = 'configs/quickstart.py:tiny'


def refusal(*overrides, device_count=8):
  with pytest.raises(configs.ConfigError) as error:
    validation.validate(configs.load(TINY, overrides), device_count)
  return str(error.value)


@pytest.mark.parametrize(
  'overrides',
  [
    (),
    ('mesh.fsdp=8', 'zero_stage=3'),
    ('mesh.data=1',),
    ('optimizer.accumulation_steps=2', 'mesh.data=4'),
    ("train.steps={'epochs': 1}", 'optimizer.schedule=wsd'),
    ('zero_stage=3',),
    ('model.positions=learned',),
    ('train.steps=4',),
    ('mesh.data=2', 'mesh.sequence=4', 'model.attention.context_parallel=all_to_all'),
    ('model.num_heads=3', 'model.head_dim=8'),
    ("train.steps={'tokens': 100000}",),
  ],
)
def test_what_can_run_passes(overrides):
  validation.validate(configs.load(TINY, overrides), 8)


@pytest.mark.parametrize(
  'overrides, said',
  [
    (['model.num_heads=3'], 'model.num_heads=3 does not divide model.embed_dim=64; choose heads that divide it'),
    (['model.num_kv_heads=3'], 'model.num_kv_heads=3 does not divide model.num_heads=4'),
    (['model.head_dim=15'], 'set an even model.head_dim'),
    (['model.positions=learned', 'model.max_length=32'], 'set model.max_length=0 for as many'),
    (['data.corpus=text'], 'corpus text needs data.path: --config.data.path=FILE'),
    (['data.corpus=text', 'data.path=nowhere.txt'], 'nowhere.txt does not exist'),
    (['data.tokenizer=file'], "data.tokenizer_path is ''"),
    (['data.corpus=mixture'], 'data.mixture is empty'),
    (
      ['data.batch_tokens=1000'],
      'data.batch_tokens=1000 must be a multiple of data.sequence_length=64; for '
      'example --config.data.batch_tokens=1024',
    ),
    (['data.batch_tokens=3'], 'for example --config.data.batch_tokens=64'),
    (
      ['data.batch_tokens=576'],
      'is 9 rows of data.sequence_length=64, which do not divide into '
      'optimizer.accumulation_steps=1 times 8 shards of the mesh; for example '
      '--config.data.batch_tokens=1024',
    ),
    (['optimizer.accumulation_steps=3'], 'optimizer.accumulation_steps=3 times 8 shards'),
    (['optimizer.schedule=wsd', 'train.steps=12'], 'make optimizer.warmup or optimizer.decay shorter'),
    (['mesh.tensor=8'], "axis 'heads' of size 4 does not divide over mesh.tensor = 8 devices"),
    (
      ['mesh.data=1', 'mesh.sequence=8', 'data.sequence_length=72', 'data.batch_tokens=72'],
      'a causal ring halves what each of mesh.sequence=8 devices has of data.sequence_length=72; for example '
      '--config.data.sequence_length=80',
    ),
    (
      ['mesh.data=1', 'mesh.sequence=8', 'model.attention.context_parallel=all_to_all'],
      "context_parallel='all_to_all' gives each of mesh.sequence=8 devices as many heads, but there are 4 to share",
    ),
    (
      ['mesh.data=4', 'mesh.sequence=2', 'model.family=encoder', 'objective.name=masked', 'model.positions=alibi'],
      "context_parallel='ring' cannot compute model.positions='alibi' where tokens see later ones",
    ),
    (['mesh.fsdp=3'], 'which does not divide the 8 devices'),
    (['mesh.data=16'], 'needs 16 devices; there are 8; set one of them to -1'),
    (['mesh.fsdp=8', 'zero_stage=3', 'model.embed_dim=60', 'model.head_dim=16'], 'of size 60 does not divide over'),
  ],
)
def test_mistakes_are_told_in_words(overrides, said):
  assert said in refusal(*overrides)
