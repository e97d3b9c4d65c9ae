"""T5 (Raffel et al. 2020) and T5 1.1 (Shazeer 2020): biases by bucketed distance, the same in all layers; logits of
attention are not scaled; the tied head reads its input divided by sqrt(width)."""

import dataclasses

from interop.family import Family
from interop.fields import ACTIVATIONS, LENGTH, Field, FieldError, Fields, free, key, must, one_of, refused
from interop.rules import Rule, dense, norm, table


def read_start(values):
  start = values.get('decoder_start_token_id')
  start = values.get('pad_token_id', 0) if start is None else start
  if not isinstance(start, int):
    raise refused('decoder_start_token_id', start, 'the token with which every target starts')
  return {'start_token': start}


def _read_layers(values):
  layers = values.get('num_layers', 6)
  return {'encoder.num_layers': layers, 'num_layers': values.get('num_decoder_layers') or layers}


def _write_layers(model):
  return {'num_layers': model['encoder.num_layers'], 'num_decoder_layers': model['num_layers']}


def _read_activation(values):
  named = values.get('feed_forward_proj', 'relu')
  gate, _, name = named.rpartition('-')
  usual = 'gelu_new' if named == 'gated-gelu' else name
  if gate not in ('', 'gated') or values.get('is_gated_act', gate == 'gated') != (gate == 'gated'):
    raise refused('feed_forward_proj', named, 'ACTIVATION or gated-ACTIVATION, as is_gated_act says')
  name = values.get('dense_act_fn', usual)
  return {'activation': ACTIVATIONS[one_of('dense_act_fn', name, ACTIVATIONS)], 'gated_mlp': gate == 'gated'}


def _write_activation(model):
  ours, gated = model['activation'], model['gated_mlp']
  names = [name for name, value in ACTIVATIONS.items() if value == ours]
  if not names:
    raise FieldError(f'model.activation={ours!r} has no name in feed_forward_proj')
  name = {('gelu_tanh', True): 'gelu', ('gelu', True): 'gelu_python'}.get((ours, gated), names[0])
  return {'feed_forward_proj': f'gated-{name}' if gated else name}


def _read_head(values):
  # Where the head is a table of its own is for the tensors to say: see `absent`.
  tied = values.get('tie_word_embeddings', True)
  scaled = values.get('scale_decoder_outputs', tied)
  width = values.get('d_model', 512)
  return {'tie_embeddings': tied and scaled, 'logit_scale': width**-0.5 if scaled else 1.0}


def _write_head(model):
  return {'tie_word_embeddings': model['logit_scale'] != 1.0, 'd_model': model['embed_dim']}


def read_dropout(values):
  rate = values.get('dropout_rate', 0.1)
  return {'dropout_rate': rate, 'attention.dropout_rate': rate}


# What Switch Transformers share with it.
MODEL = {'family': 'encoder_decoder', 'positions': 't5', 'norm': 'rmsnorm', 'attention.scale': 1.0}
FIELDS = (
  key('vocab_size', 'vocab_size', 32128),
  key('d_kv', 'head_dim', 64),
  key('d_ff', 'mlp_dim', 2048),
  key('relative_attention_num_buckets', 'relative.num_buckets', 32),
  key('relative_attention_max_distance', 'relative.max_distance', 128),
  key('layer_norm_epsilon', 'norm_epsilon', 1e-6),
  Field(('n_positions',), lambda values: {LENGTH: values.get('n_positions', 512)}, lambda model: {}),
  Field(('dropout_rate',), read_dropout, lambda model: {'dropout_rate': model['dropout_rate']}),
  Field(
    ('decoder_start_token_id', 'pad_token_id'),
    read_start,
    lambda model: {'decoder_start_token_id': model['start_token']},
  ),
  must('is_encoder_decoder', True),
  free('initializer_factor', 'classifier_dropout', 'output_past'),
)


def stack_rules(stack: str, name: str, mlp: int) -> tuple[Rule, ...]:
  """Those of a stack whose feed-forward `name` is number `mlp` of the branches of a layer."""
  block, ours = f'{stack}.block.{{layer}}.layer', f'{stack}/{{layer}}'
  bias = f'{stack}.block.0.layer.0.SelfAttention.relative_attention_bias'
  rules = [*table(bias, f'{stack}/relative'), *norm(f'{stack}.final_layer_norm', f'{stack}/final_norm')]
  branches = {'attention': f'{block}.0.SelfAttention', 'cross_attention': f'{block}.1.EncDecAttention'}
  for branch, theirs in branches.items():
    if branch == 'cross_attention' and stack == 'encoder':
      continue
    rules += norm(f'{theirs.rpartition(".")[0]}.layer_norm', f'{ours}/{branch}_norm')
    for letter, projection in (('q', 'query'), ('k', 'key'), ('v', 'value')):
      rules += dense(f'{theirs}.{letter}', f'{ours}/{branch}/{projection}')
    rules += dense(f'{theirs}.o', f'{ours}/{branch}/out', inputs=2)
  theirs, gate = f'{block}.{mlp}.{name}', f'{ours}/mlp/gate/kernel'
  rules += norm(f'{block}.{mlp}.layer_norm', f'{ours}/mlp_norm')
  rules += (*dense(f'{theirs}.wi_0', f'{ours}/mlp/gate'), *dense(f'{theirs}.wo', f'{ours}/mlp/down'))
  for up, is_gated in (('wi', False), ('wi_1', True)):
    rules += (dataclasses.replace(rule, where=(gate, is_gated)) for rule in dense(f'{theirs}.{up}', f'{ours}/mlp/up'))
  return tuple(rules)


# The original's first releases kept a table for cross-attention too, which nothing reads.
BUFFERS = r'decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight'
DUPLICATES = dict.fromkeys(
  ('encoder.embed_tokens.weight', 'decoder.embed_tokens.weight', 'lm_head.weight'), 'shared.weight'
)

FAMILY = Family(
  name='t5',
  architectures=('T5ForConditionalGeneration', 'T5Model'),
  fields=Fields(
    (
      *FIELDS,
      key('d_model', 'embed_dim', 512),
      key('num_heads', 'num_heads', 8),
      Field(('num_layers', 'num_decoder_layers'), _read_layers, _write_layers),
      Field(('feed_forward_proj', 'dense_act_fn', 'is_gated_act'), _read_activation, _write_activation),
      Field(('tie_word_embeddings', 'scale_decoder_outputs', 'd_model'), _read_head, _write_head),
    ),
    MODEL,
  ),
  rules=(
    *table('shared', 'embedding'),
    *table('lm_head', 'head'),
    *stack_rules('encoder', 'DenseReluDense', 1),
    *stack_rules('decoder', 'DenseReluDense', 2),
  ),
  objective='span_corruption',
  duplicates=DUPLICATES,
  buffers=BUFFERS,
  absent={'lm_head.weight': {'tie_embeddings': True}},
)
