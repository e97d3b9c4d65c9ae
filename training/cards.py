"""Model cards: what a model is, what it learned from, how well, and what makes it again.

In the format of the Hugging Face hub: a head in YAML between lines of `---`, then markdown. The values of the head are
written as JSON, which is YAML.
"""

import json
import math
import pathlib
from collections.abc import Mapping

NAME = 'MODEL_CARD.md'
_TASKS = {'decoder': 'text-generation', 'encoder': 'fill-mask', 'encoder_decoder': 'text2text-generation'}
_METRICS = {'eval_loss': 'loss', 'perplexity': 'perplexity', 'bits_per_byte': 'bits per byte'}
_SIZES = ('num_layers', 'embed_dim', 'num_heads', 'num_kv_heads', 'head_dim', 'mlp_dim', 'vocab_size')
_VARIANTS = ('positions', 'norm', 'norm_position', 'activation', 'gated_mlp', 'tie_embeddings')


def write(workdir: pathlib.Path, text: str) -> None:
  """Writes the card of a run, whole or not at all."""
  temporary = workdir / f'{NAME}.tmp'
  temporary.write_text(text, encoding='utf-8')
  temporary.replace(workdir / NAME)


def card(
  config, *, name: str, num_params: int, summary: Mapping, command: str, source: str = '', library='meshlm'
) -> str:
  """The card of a model.

  Args:
    config: the whole resolved config.
    name: of the model.
    num_params: of the model; tied weights count once.
    summary: what `summary.json` holds; {} for a model that was not trained here.
    command: what makes the model again.
    source: the directory that its weights came from; '' = none.
    library: that loads it.
  """
  # summary.json has null for what is not finite or not defined, as bits per byte of a masked model.
  given = {words: summary[key] for key, words in _METRICS.items() if summary.get(key) is not None}
  metrics = {words: value for words, value in given.items() if math.isfinite(value)}
  parts = [
    _head(config, name, metrics, library),
    f'# {name}',
    _about(config, num_params, source),
    _sizes(config.model, num_params),
    '## Data',
    _data(config, summary, source),
    '## Objective',
    _objective(config, summary),
    '## Metrics',
    _metrics(metrics, config),
    '## Limits',
    _limits(config, source),
    '## Made by',
    f'```bash\n{command}\n```',
  ]
  return '\n\n'.join(parts) + '\n'


def read_summary(workdir: pathlib.Path) -> dict:
  """What `summary.json` of a run holds; {} where it has not finished."""
  path = workdir / 'summary.json'
  return json.loads(path.read_text(encoding='utf-8')) if path.is_file() else {}


def _head(config, name, metrics, library):
  task = _TASKS[config.model.family]
  head = {'library_name': library, 'pipeline_tag': task, 'tags': ['meshlm', config.objective.name]}
  if config.data.corpus == 'huggingface':
    head['datasets'] = [config.data.path]
  if metrics:
    result = {
      'task': {'type': task},
      'dataset': {'name': f'{_corpus(config.data)}, validation split', 'type': config.data.corpus},
      'metrics': [{'type': key.replace(' ', '_'), 'value': value} for key, value in metrics.items()],
    }
    head |= {'metrics': list(metrics), 'model-index': [{'name': name, 'results': [result]}]}
  lines = [f'{key}: {json.dumps(value, ensure_ascii=False)}' for key, value in head.items()]
  return '\n'.join(['---', *lines, '---'])


def _about(config, num_params, source):
  kind = config.model.family.replace('_', '-')
  came = f', with the weights of `{source}`' if source else ', trained from random weights'
  return f'A transformer {kind} of {num_params:,} parameters{came}.'


def _sizes(model_config, num_params):
  rows = {'parameters': f'{num_params:,}'} | {key: model_config[key] for key in (*_SIZES, *_VARIANTS)}
  return '\n'.join(['| | |', '|---|---|', *(f'| {key.replace("_", " ")} | {value} |' for key, value in rows.items())])


def _data(config, summary, source):
  if not summary:
    return f'That of `{source}`; nothing was learned since.' if source else 'Not known: the run has not finished.'
  return (
    f'{summary["tokens"]:,} tokens of {_corpus(config.data)}, in rows of {config.data.sequence_length:,} tokens, '
    f'{config.data.batch_tokens:,} a step; tokenizer: {config.data.tokenizer}.'
  )


def _corpus(data_config):
  if data_config.corpus == 'mixture':
    return 'a mixture of ' + ', '.join(f'{part["weight"]:g} x {part["corpus"]}' for part in data_config.mixture)
  return f'`{data_config.corpus}`' + (f' ({data_config.path})' if data_config.path else '')


def _objective(config, summary):
  words = f'`{config.objective.name}`'
  if not summary:
    return f'{words}.'
  return (
    f'{words}, {summary["step"]:,} steps of `{config.optimizer.name}` with a peak learning rate of '
    f'{config.optimizer.learning_rate:g} ({config.optimizer.schedule}), {config.precision.dtype}.'
  )


def _metrics(metrics, config):
  if not metrics:
    return 'None were measured.'
  rows = [f'| {key} | {value:.4f} |' for key, value in metrics.items()]
  return '\n'.join([f'On the validation split of {_corpus(config.data)}.', '', '| | |', '|---|---|', *rows])


def _limits(config, source):
  length = (
    f'{config.model.max_length:,} tokens at most.'
    if config.model.positions == 'learned'
    else f'Rows of {config.data.sequence_length:,} tokens; longer texts may work, which was not measured.'
  )
  learned = f'What `{source}` says of itself holds here too.' if source else 'It knows its training text alone.'
  return f'{length} {learned} It was not measured for truth, bias or safety, and not taught to follow instructions.'
