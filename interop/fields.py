"""What the fields of a config.json mean to us, said so that it is read in both directions.

Between the two stands a flat dict: keys of the group `model` by path, such as 'attention.window', and `length`, the
tokens of the longest text, which is no key of a model whose positions are not learned.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

LENGTH = 'length'


class FieldError(ValueError):
  """A config says what cannot be honoured on the other side."""


@dataclasses.dataclass(frozen=True)
class Field:
  """One or several fields of config.json that are read together.

  Attributes:
    names: of the fields.
    read: from the values of these fields that there are, to ours. Raises FieldError, which names the field.
    write: from ours to the values of these fields. Raises FieldError, which names our key.
  """

  names: tuple[str, ...]
  read: Callable[[dict], dict]
  write: Callable[[dict], dict]


def key(theirs: str, ours: str, default, choices: Mapping | None = None) -> Field:
  """A field that is one of our keys.

  Args:
    theirs: the field.
    ours: the key; 0 of it stands for null of theirs, which both mean: by the usual rule.
    default: what a config.json without the field means.
    choices: ours by theirs; None: the same value.
  """

  def read(values):
    value = values.get(theirs, default)
    if choices is not None:
      return {ours: choices[one_of(theirs, value, choices)]}
    if value is not None and (
      not isinstance(value, (int, float, bool)) or isinstance(value, bool) != _is_flag(default)
    ):
      raise refused(theirs, value, 'True or False' if _is_flag(default) else 'a number')
    return {ours: 0 if value is None else value}

  def write(model):
    if choices is None:
      return {theirs: model[ours]}
    names = [name for name, value in choices.items() if value == model[ours]]
    if not names:
      raise FieldError(f'model.{ours}={model[ours]!r} has no name in {theirs}, which knows {", ".join(choices)}')
    return {theirs: names[0]}

  return Field((theirs,), read, write)


def must(theirs: str, *allowed) -> Field:
  """A field that would change the mathematics; the first value is what its absence means, so it is never written."""

  def read(values):
    one_of(theirs, values.get(theirs, allowed[0]), allowed)
    return {}

  return Field((theirs,), read, lambda model: {})


def free(*theirs: str) -> Field:
  """Fields that say nothing about the mathematics of the model; never written."""
  return Field(theirs, lambda values: {}, lambda model: {})


def with_head(full: str, bare: str, keys: Sequence[str], *fields: Field) -> Field:
  """The class of transformers and what is said of its head.

  Args:
    full: written for a model with a head.
    bare: the class without one; hidden states alone mean something then.
    keys: flags of ours that say what a head consists of; where the first is not set, there is none.
    fields: read where there is a head.
  """

  def read(values):
    if bare in (values.get('architectures') or ()):
      return dict.fromkeys(keys, False) | {'tie_embeddings': True}
    return {name: value for field in fields for name, value in field.read(values).items()}

  def write(model):
    if not model[keys[0]]:
      return {'architectures': [bare]}
    return {'architectures': [full]} | {name: value for field in fields for name, value in field.write(model).items()}

  return Field(('architectures', *(name for field in fields for name in field.names)), read, write)


def equal(theirs: str, other: str, ours: str, default) -> Field:
  """A field that must agree with another, since our key `ours` is both."""

  def read(values):
    if (value := values.get(theirs, default)) != (wanted := values.get(other, default)):
      raise refused(theirs, value, f'the value of {other}, {wanted!r}')
    return {}

  return Field((theirs, other), read, lambda model: {theirs: model[ours], other: model[ours]})


def one_of(name: str, value, allowed: Sequence | Mapping):
  """The value. Raises FieldError if it is not allowed."""
  if not any(value == other and _is_flag(value) == _is_flag(other) for other in allowed):
    raise refused(name, value, ' or '.join(repr(other) for other in allowed))
  return value


def refused(name: str, value, allowed: str) -> FieldError:
  return FieldError(f'{name}={value!r} cannot be honoured; allowed is {allowed}')


def _is_flag(value) -> bool:
  return isinstance(value, bool)


ACTIVATIONS = {
  'silu': 'silu',
  'swish': 'silu',
  'gelu': 'gelu',
  'gelu_python': 'gelu',
  'gelu_new': 'gelu_tanh',
  'gelu_pytorch_tanh': 'gelu_tanh',
  'gelu_fast': 'gelu_tanh',
  'relu': 'relu',
}

# Of every model of transformers: where it comes from, how its outputs are packed, and how it once generated text.
COMMON = (
  must('is_encoder_decoder', False),
  must('add_cross_attention', False),
  must('quantization_config', None),
  must('auto_map', None),
  must('pruned_heads', None, {}, []),
  must('cross_attention_hidden_size', None),
  *map(
    free,
    (
      *(
        '_name_or_path',
        'architectures',
        'model_type',
        'transformers_version',
        'dtype',
        'torch_dtype',
        'tokenizer_class',
      ),
      *('bos_token_id', 'eos_token_id', 'pad_token_id', 'sep_token_id', 'decoder_start_token_id', 'prefix'),
      *('initializer_range', 'use_cache', 'output_hidden_states', 'output_attentions', 'return_dict', 'is_decoder'),
      *('chunk_size_feed_forward', 'id2label', 'label2id', 'problem_type', 'task_specific_params', 'finetuning_task'),
      *('_attn_implementation_autoset', 'attn_implementation', '_attn_implementation', 'torchscript', 'use_bfloat16'),
      *('gradient_checkpointing', 'tf_legacy_loss', 'tie_encoder_decoder', 'return_dict_in_generate', 'output_scores'),
      *('max_length', 'min_length', 'do_sample', 'early_stopping', 'num_beams', 'num_beam_groups', 'diversity_penalty'),
      *('temperature', 'top_k', 'top_p', 'typical_p', 'repetition_penalty', 'length_penalty', 'no_repeat_ngram_size'),
      *('encoder_no_repeat_ngram_size', 'bad_words_ids', 'num_return_sequences', 'forced_bos_token_id'),
      *('forced_eos_token_id', 'remove_invalid_values', 'exponential_decay_length_penalty', 'suppress_tokens'),
      'begin_suppress_tokens',
    ),
  ),
)


@dataclasses.dataclass(frozen=True)
class Fields:
  """The whole config.json of a family, both ways.

  Attributes:
    fields: those of the family; where one has the name of a common one, it stands for that.
    model: keys of ours that every model of the family has alike.
    aliases: fields by other names that they had once.
  """

  fields: tuple[Field, ...]
  model: Mapping
  aliases: Mapping = dataclasses.field(default_factory=dict)

  def read(self, config: Mapping) -> dict:
    """Keys of our model, and `length`, of a config.json.

    Raises:
      FieldError: a field is unknown or has a value that cannot be honoured.
    """
    fields = self._all()
    config = {self.aliases.get(name, name): value for name, value in config.items()}
    known = {name for field in fields for name in field.names}
    for name, value in config.items():
      if name not in known and value is not None:
        raise FieldError(f'{name}={value!r} is not known, and might change the mathematics; remove it if it does not')
    model = dict(self.model)
    for field in fields:
      model |= field.read({name: config[name] for name in field.names if name in config})
    return model

  def write(self, model: Mapping, before: Mapping) -> dict:
    """The config.json of a model of ours.

    Args:
      model: all keys by path, and `length`.
      before: the config.json that the model came with, or {}; its fields stay where they still say the same.
    """
    written, before = {}, {self.aliases.get(name, name): value for name, value in before.items()}
    for field in self._all():
      old = {name: before[name] for name in field.names if name in before}
      new = field.write(dict(model))
      written |= old if old and self._says(field, old) == self._says(field, new) else new
    return written

  def _says(self, field, values):
    try:
      return {name: value for name, value in field.read(values).items() if name != LENGTH}
    except FieldError:
      return None

  def _all(self):
    own = {name for field in self.fields for name in field.names}
    return self.fields + tuple(field for field in COMMON if not own & set(field.names))
