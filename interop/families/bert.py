"""BERT (Devlin et al. 2019): learned positions and segments, a norm behind each branch, a head with a layer of its own.

The pooler and the head that says whether two sentences follow each other are carried along: nothing here reads them.
"""

from interop.family import Family
from interop.fields import ACTIVATIONS, LENGTH, Field, FieldError, Fields, free, key, must, with_head
from interop.rules import Rule, dense, norm, table

# What RoBERTa shares with it.
MODEL = {
  'family': 'encoder',
  'positions': 'learned',
  'embedding_norm': True,
  'norm': 'layernorm',
  'norm_position': 'post',
  'gated_mlp': False,
  'use_bias': True,
  'head_transform': True,
  'head_bias': True,
}
_TYPES = key('type_vocab_size', 'token_types', 2)


def _write_types(model):
  if not model['token_types']:
    raise FieldError('model.token_types=0 cannot be written as BERT or RoBERTa, which add the vector of a type to all')
  return _TYPES.write(model)


SHARED = (
  key('hidden_size', 'embed_dim', 768),
  key('num_hidden_layers', 'num_layers', 12),
  key('num_attention_heads', 'num_heads', 12),
  key('intermediate_size', 'mlp_dim', 3072),
  key('hidden_dropout_prob', 'dropout_rate', 0.1),
  key('attention_probs_dropout_prob', 'attention.dropout_rate', 0.1),
  key('layer_norm_eps', 'norm_epsilon', 1e-12),
  Field(('type_vocab_size',), _TYPES.read, _write_types),
  must('position_embedding_type', 'absolute'),
  must('is_decoder', False),
  free('classifier_dropout', 'directionality', 'pooler_fc_size', 'pooler_num_attention_heads'),
  free('pooler_num_fc_layers', 'pooler_size_per_head', 'pooler_type', 'gradient_checkpointing'),
)
HEAD = (('head_transform', 'head_bias'), key('tie_word_embeddings', 'tie_embeddings', True))
RENAMED = {'LayerNorm.gamma': 'LayerNorm.weight', 'LayerNorm.beta': 'LayerNorm.bias'}


def body(name: str) -> tuple[Rule, ...]:
  """Where everything but the head is in a model that is called so."""
  layer = f'{name}.encoder.layer.{{layer}}'
  return (
    *table(f'{name}.embeddings.word_embeddings', 'embedding'),
    *table(f'{name}.embeddings.position_embeddings', 'position'),
    *table(f'{name}.embeddings.token_type_embeddings', 'token_type'),
    *norm(f'{name}.embeddings.LayerNorm', 'embedding_norm'),
    *dense(f'{layer}.attention.self.query', '{layer}/attention/query'),
    *dense(f'{layer}.attention.self.key', '{layer}/attention/key'),
    *dense(f'{layer}.attention.self.value', '{layer}/attention/value'),
    *dense(f'{layer}.attention.output.dense', '{layer}/attention/out', inputs=2),
    *norm(f'{layer}.attention.output.LayerNorm', '{layer}/attention_norm'),
    *dense(f'{layer}.intermediate.dense', '{layer}/mlp/up'),
    *dense(f'{layer}.output.dense', '{layer}/mlp/down'),
    *norm(f'{layer}.output.LayerNorm', '{layer}/mlp_norm'),
  )


def head(tied_bias: str, decoder: str) -> tuple[Rule, ...]:
  """Where table and bias of a head are: transformers reads the decoder's own bias, which is another where untied."""
  return (
    *table(decoder, 'head'),
    Rule(tied_bias, ('head/bias',), where=('head/table', False)),
    Rule(f'{decoder}.bias', ('head/bias',), where=('head/table', True)),
  )


def buffers(name: str) -> str:
  """The pattern of what old versions stored beside the parameters."""
  return rf'{name}\.embeddings\.(position_ids|token_type_ids)'


FAMILY = Family(
  name='bert',
  architectures=('BertForMaskedLM', 'BertForPreTraining', 'BertModel'),
  fields=Fields(
    (
      key('vocab_size', 'vocab_size', 30522),
      key('max_position_embeddings', 'max_length', 512),
      key('max_position_embeddings', LENGTH, 512),
      key('hidden_act', 'activation', 'gelu', {'gelu': 'gelu'} | ACTIVATIONS),
      *SHARED,
      with_head('BertForMaskedLM', 'BertModel', *HEAD),
    ),
    MODEL,
  ),
  rules=(
    *body('bert'),
    *dense('cls.predictions.transform.dense', 'head_transform/dense'),
    *norm('cls.predictions.transform.LayerNorm', 'head_transform/norm'),
    *head('cls.predictions.bias', 'cls.predictions.decoder'),
  ),
  prefix='bert.',
  duplicates={
    'cls.predictions.decoder.weight': 'bert.embeddings.word_embeddings.weight',
    'cls.predictions.decoder.bias': 'cls.predictions.bias',
  },
  buffers=buffers('bert'),
  carried=r'bert\.pooler\.dense\..*|cls\.seq_relationship\..*|cls\.predictions\.bias',
  copies={'cls.predictions.bias': 'cls.predictions.decoder.bias'},
  renamed=RENAMED,
  objective='masked',
)
