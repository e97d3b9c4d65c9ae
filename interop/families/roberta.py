"""RoBERTa (Liu et al. 2019): BERT whose positions begin behind the row of padding, mostly without segments."""

from interop.families import bert
from interop.family import Family
from interop.fields import LENGTH, Field, FieldError, Fields, key, with_head
from interop.rules import dense, norm


def _read_positions(values):
  offset = values.get('pad_token_id', 1)
  if not isinstance(offset, int) or offset < 0:
    raise FieldError(f'pad_token_id={offset!r} cannot be honoured; the first position is the row behind it')
  length = values.get('max_position_embeddings', 512) - offset - 1
  if length < 1:
    raise FieldError(f'max_position_embeddings={length + offset + 1} leaves no position behind pad_token_id={offset}')
  return {'position_offset': offset + 1, 'max_length': length, LENGTH: length}


def _write_positions(model):
  if not model['position_offset']:
    raise FieldError('model.position_offset=0 cannot be written as roberta, whose first row of positions is padding')
  rows = model['max_length'] + model['position_offset']
  return {'max_position_embeddings': rows, 'pad_token_id': model['position_offset'] - 1}


FAMILY = Family(
  name='roberta',
  architectures=('RobertaForMaskedLM', 'RobertaModel'),
  fields=Fields(
    (
      key('vocab_size', 'vocab_size', 50265),
      Field(('max_position_embeddings', 'pad_token_id'), _read_positions, _write_positions),
      # The head has this one whatever the field says.
      key('hidden_act', 'activation', 'gelu', {'gelu': 'gelu', 'gelu_python': 'gelu'}),
      *bert.SHARED,
      with_head('RobertaForMaskedLM', 'RobertaModel', *bert.HEAD),
    ),
    bert.MODEL,
  ),
  rules=(
    *bert.body('roberta'),
    *dense('lm_head.dense', 'head_transform/dense'),
    *norm('lm_head.layer_norm', 'head_transform/norm'),
    *bert.head('lm_head.bias', 'lm_head.decoder'),
  ),
  prefix='roberta.',
  duplicates={
    'lm_head.decoder.weight': 'roberta.embeddings.word_embeddings.weight',
    'lm_head.decoder.bias': 'lm_head.bias',
  },
  buffers=bert.buffers('roberta'),
  carried=r'roberta\.pooler\.dense\..*|lm_head\.bias',
  copies={'lm_head.bias': 'lm_head.decoder.bias'},
  renamed=bert.RENAMED,
  objective='masked',
)
