"""ModernBERT (Warner et al. 2024): rotary positions with a base for global and one for local layers, a gated
feed-forward, queries, keys and values fused, no norm before the first attention."""

from interop import rotary, windows
from interop.families import bert, llama
from interop.family import Family
from interop.fields import ACTIVATIONS, LENGTH, Field, FieldError, Fields, equal, free, key, must, refused, with_head
from interop.rules import Rule, dense, norm, table

_THETAS = {'full_attention': ('global_rope_theta', 160000.0), 'sliding_attention': ('local_rope_theta', 10000.0)}
_ROPE = tuple(name for name, _ in _THETAS.values())
_LENGTH = 'max_position_embeddings'
_LAYERS = ('layer_types', 'global_attn_every_n_layers', 'local_attention', 'num_hidden_layers')
_ACTIVATIONS = {'gelu': 'gelu'} | ACTIVATIONS


def _read_layers(values):
  count = values.get('num_hidden_layers', 22)
  every = values.get('global_attn_every_n_layers') or 3
  usual = ['sliding_attention' if i % every else 'full_attention' for i in range(count)]
  kinds = values.get('layer_types') or usual
  for kind in kinds:
    if kind not in _THETAS:
      raise refused('layer_types', kind, ' or '.join(_THETAS))
  if len(kinds) != count:
    raise refused('layer_types', kinds, f'one for each of the {count} layers (num_hidden_layers)')
  pattern = windows.pattern(['local' if kind == 'sliding_attention' else 'global' for kind in kinds])
  window = values.get('local_attention', 128) // 2 + 1
  return {'attention.pattern': pattern, 'attention.window': window if 'local' in pattern else 0}


def _write_layers(model):
  ours, count = model['attention.pattern'], model['num_layers']
  names = {'local': 'sliding_attention', 'global': 'full_attention'}
  written = {'num_hidden_layers': count, 'layer_types': [names[ours[i % len(ours)]] for i in range(count)]}
  window = model['attention.window']
  return written | ({'local_attention': 2 * (window - 1)} if window else {})


def _read_rope(values):
  nested, shared = values.get('rope_parameters') or {}, values.get('rope_scaling') or {}
  if unknown := [name for name in nested if name not in _THETAS]:
    raise FieldError(f'rope_parameters.{unknown[0]} cannot be honoured; allowed are {", ".join(_THETAS)}')
  kinds = []
  for kind, (name, default) in _THETAS.items():
    theta = values.get(name) or default
    entries = (nested.get(kind) or {}) | shared
    kinds.append(rotary.read_entries(entries, f'rope_parameters.{kind}', theta, values.get(_LENGTH, 8192)))
  ours, local = kinds
  if local == ours:
    return ours
  if local['rope.scaling'] != 'none':
    raise FieldError('rope_parameters.sliding_attention is scaled by itself, which cannot be honoured; only default is')
  return ours | {'rope.local_theta': local['rope.theta']}


def _write_rope(model):
  scaling, length = rotary.write_entries(model)
  of_global = {'rope_type': 'default', 'rope_theta': model['rope.theta']} | scaling
  local_theta = model['rope.local_theta']
  of_local = {'rope_type': 'default', 'rope_theta': local_theta} if local_theta else of_global
  return {'rope_parameters': {'full_attention': of_global, 'sliding_attention': of_local}} | length


def _read_activation(values):
  activation, of_head = values.get('hidden_activation', 'gelu'), values.get('classifier_activation', 'gelu')
  if ACTIVATIONS.get(of_head) != ACTIVATIONS.get(activation):
    raise refused('classifier_activation', of_head, f'the value of hidden_activation, {activation!r}')
  return {}


FAMILY = Family(
  name='modernbert',
  architectures=('ModernBertForMaskedLM', 'ModernBertModel'),
  fields=Fields(
    (
      key('vocab_size', 'vocab_size', 50368),
      key('hidden_size', 'embed_dim', 768),
      key('num_hidden_layers', 'num_layers', 22),
      key('num_attention_heads', 'num_heads', 12),
      key('intermediate_size', 'mlp_dim', 1152),
      key('hidden_activation', 'activation', 'gelu', _ACTIVATIONS),
      key('norm_eps', 'norm_epsilon', 1e-5),
      key('attention_dropout', 'attention.dropout_rate', 0.0),
      key('mlp_dropout', 'dropout_rate', 0.0),
      equal('embedding_dropout', 'mlp_dropout', 'dropout_rate', 0.0),
      Field(
        ('hidden_activation', 'classifier_activation'),
        _read_activation,
        key('classifier_activation', 'activation', 'gelu', _ACTIVATIONS).write,
      ),
      key(_LENGTH, LENGTH, 8192),
      with_head('ModernBertForMaskedLM', 'ModernBertModel', *bert.HEAD, key('decoder_bias', 'head_bias', True)),
      llama.biases('attention_bias', 'mlp_bias'),
      equal('norm_bias', 'mlp_bias', 'use_bias', False),
      equal('classifier_bias', 'mlp_bias', 'use_bias', False),
      Field(_LAYERS, _read_layers, _write_layers),
      Field(('rope_parameters', 'rope_scaling', *_ROPE, _LENGTH), _read_rope, _write_rope),
      Field(('pad_token_id',), lambda values: {}, lambda model: {'pad_token_id': None}),
      must('position_embedding_type', 'absolute'),
      free('initializer_cutoff_factor', 'cls_token_id', 'classifier_pooling'),
      free('classifier_dropout', 'deterministic_flash_attn', 'sparse_prediction', 'sparse_pred_ignore_index'),
      free('reference_compile', 'repad_logits_with_grad', 'layer_norm_eps'),
    ),
    {
      'family': 'encoder',
      'positions': 'rope',
      'embedding_norm': True,
      'first_norm': False,
      'norm': 'layernorm',
      'gated_mlp': True,
      'head_transform': True,
    },
  ),
  rules=(
    *table('model.embeddings.tok_embeddings', 'embedding'),
    *norm('model.embeddings.norm', 'embedding_norm'),
    *norm('model.final_norm', 'final_norm'),
    *dense('head.dense', 'head_transform/dense'),
    *norm('head.norm', 'head_transform/norm'),
    *table('decoder', 'head'),
    Rule('decoder.bias', ('head/bias',)),
    *norm('model.layers.{layer}.attn_norm', '{layer}/attention_norm'),
    *dense(
      'model.layers.{layer}.attn.Wqkv', '{layer}/attention/query', '{layer}/attention/key', '{layer}/attention/value'
    ),
    *dense('model.layers.{layer}.attn.Wo', '{layer}/attention/out', inputs=2),
    *norm('model.layers.{layer}.mlp_norm', '{layer}/mlp_norm'),
    *dense('model.layers.{layer}.mlp.Wi', '{layer}/mlp/gate', '{layer}/mlp/up'),
    *dense('model.layers.{layer}.mlp.Wo', '{layer}/mlp/down'),
  ),
  prefix='model.',
  duplicates={'decoder.weight': 'model.embeddings.tok_embeddings.weight'},
  objective='masked',
)
