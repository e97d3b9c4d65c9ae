"""BART (Lewis et al. 2020): norms after each branch and after the embedding, learned positions from row 2 on, a number
for each token that is added to the logits."""

import math

from interop.families import t5
from interop.family import Family
from interop.fields import ACTIVATIONS, LENGTH, Field, Fields, free, key, must, refused
from interop.rules import Rule, dense, norm, table


def _read_scale(values):
  width = values.get('d_model', 1024)
  return {'embedding_scale': math.sqrt(width) if values.get('scale_embedding', False) else 1.0}


def _read_start(values):
  return t5.read_start({'decoder_start_token_id': 2} | values)


def _forced(theirs, ours, default):
  """A token that generated text must have in a place; null, ours -1: none."""

  def read(values):
    token = values.get(theirs, default)
    if token is not None and not isinstance(token, int):
      raise refused(theirs, token, 'a token or null')
    return {ours: -1 if token is None else token}

  def write(model):
    token = None if model[ours] < 0 else model[ours]
    return {} if token == default else {theirs: token}

  return Field((theirs,), read, write)


def _stack_rules(stack):
  theirs, ours = f'model.{stack}', f'{stack}/{{layer}}'
  layer = f'{theirs}.layers.{{layer}}'
  rules = [*table(f'{theirs}.embed_positions', f'{stack}/position')]
  rules += norm(f'{theirs}.layernorm_embedding', f'{stack}/embedding_norm')
  branches = {'attention': 'self_attn', 'cross_attention': 'encoder_attn'}
  for branch, name in branches.items():
    if branch == 'cross_attention' and stack == 'encoder':
      continue
    for projection in ('query', 'key', 'value'):
      rules += dense(f'{layer}.{name}.{projection[0]}_proj', f'{ours}/{branch}/{projection}')
    rules += dense(f'{layer}.{name}.out_proj', f'{ours}/{branch}/out', inputs=2)
    rules += norm(f'{layer}.{name}_layer_norm', f'{ours}/{branch}_norm')
  rules += dense(f'{layer}.fc1', f'{ours}/mlp/up')
  rules += dense(f'{layer}.fc2', f'{ours}/mlp/down')
  return (*rules, *norm(f'{layer}.final_layer_norm', f'{ours}/mlp_norm'))


FAMILY = Family(
  name='bart',
  architectures=('BartForConditionalGeneration', 'BartModel'),
  fields=Fields(
    (
      key('vocab_size', 'vocab_size', 50265),
      key('max_position_embeddings', 'max_length', 1024),
      key('max_position_embeddings', LENGTH, 1024),
      key('d_model', 'embed_dim', 1024),
      key('encoder_layers', 'encoder.num_layers', 12),
      key('encoder_attention_heads', 'encoder.num_heads', 16),
      key('encoder_ffn_dim', 'encoder.mlp_dim', 4096),
      key('decoder_layers', 'num_layers', 12),
      key('decoder_attention_heads', 'num_heads', 16),
      key('decoder_ffn_dim', 'mlp_dim', 4096),
      key('activation_function', 'activation', 'gelu', {'gelu': 'gelu'} | ACTIVATIONS),
      key('dropout', 'dropout_rate', 0.1),
      key('attention_dropout', 'attention.dropout_rate', 0.0),
      Field(
        ('scale_embedding', 'd_model'),
        _read_scale,
        lambda model: {'scale_embedding': model['embedding_scale'] != 1.0, 'd_model': model['embed_dim']},
      ),
      Field(
        ('decoder_start_token_id', 'pad_token_id'),
        _read_start,
        lambda model: {'decoder_start_token_id': model['start_token']},
      ),
      _forced('forced_bos_token_id', 'forced_first_token', None),
      _forced('forced_eos_token_id', 'forced_last_token', 2),
      must('is_encoder_decoder', True),
      must('tie_word_embeddings', True),
      must('encoder_layerdrop', 0.0),
      must('decoder_layerdrop', 0.0),
      must('normalize_embedding', True),
      must('normalize_before', False),
      must('add_final_layer_norm', False),
      must('add_bias_logits', False),
      must('static_position_embeddings', False),
      must('extra_pos_embeddings', 2),
      # Dropout within a feed-forward or a classifier is not a part of the function that the weights make.
      free('activation_dropout', 'classifier_dropout', 'classif_dropout', 'init_std', 'num_hidden_layers'),
      free('num_labels', 'output_past', 'force_bos_token_to_be_generated', 'max_new_tokens'),
    ),
    {
      'family': 'encoder_decoder',
      'positions': 'learned',
      'position_offset': 2,
      'embedding_norm': True,
      'norm': 'layernorm',
      'norm_position': 'post',
      'gated_mlp': False,
      'use_bias': True,
      'head_bias': True,
    },
  ),
  rules=(
    *table('model.shared', 'embedding'),
    Rule('final_logits_bias', ('head/bias',), ones=1),
    *_stack_rules('encoder'),
    *_stack_rules('decoder'),
  ),
  prefix='model.',
  objective='denoising',
  duplicates=dict.fromkeys(
    ('model.encoder.embed_tokens.weight', 'model.decoder.embed_tokens.weight', 'lm_head.weight'), 'model.shared.weight'
  ),
  buffers=r'model\.(encoder|decoder)\.version',
  absent={'final_logits_bias': {'head_bias': False}},
)
