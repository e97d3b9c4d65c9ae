"""XLNet (Yang et al. 2019): relative positions and segments inside attention, a vector for what is to be predicted.

Each text is read by itself: memories of earlier ones, which `mem_len` is about, are not kept.
"""

from interop.family import Family
from interop.fields import ACTIVATIONS, LENGTH, Fields, free, key, must, with_head
from interop.rules import Rule, dense, norm, table


def _attention(theirs, ours, **options) -> Rule:
  return Rule(f'transformer.layer.{{layer}}.rel_attn.{theirs}', (f'{{layer}}/attention/{ours}',), flat=False, **options)


FAMILY = Family(
  name='xlnet',
  architectures=('XLNetLMHeadModel', 'XLNetModel'),
  fields=Fields(
    (
      key('vocab_size', 'vocab_size', 32000),
      key('d_model', 'embed_dim', 1024),
      key('n_layer', 'num_layers', 24),
      key('n_head', 'num_heads', 16),
      key('d_inner', 'mlp_dim', 4096),
      key('d_head', 'head_dim', None),
      key('ff_activation', 'activation', 'gelu', {'gelu': 'gelu'} | ACTIVATIONS),
      key('layer_norm_eps', 'norm_epsilon', 1e-12),
      key('dropout', 'dropout_rate', 0.1),
      key('dropout', 'attention.dropout_rate', 0.1),
      with_head('XLNetLMHeadModel', 'XLNetModel', ('head_bias',), key('tie_word_embeddings', 'tie_embeddings', True)),
      must('attn_type', 'bi'),
      must('bi_data', False),
      must('clamp_len', -1, 0),
      must('untie_r', True),
      free('same_length'),  # of causal attention (attn_type='uni') with memories
      free('mem_len', 'reuse_len', 'use_mems_eval', 'use_mems_train', 'use_mems'),
      free('summary_type', 'summary_use_proj', 'summary_activation', 'summary_last_dropout'),
      free('start_n_top', 'end_n_top'),
    ),
    {
      'positions': 'xlnet',
      'token_types': 2,
      'norm': 'layernorm',
      'norm_position': 'post',
      'gated_mlp': False,
      'use_bias': True,
      'attention.bias': 'none',
      'head_bias': True,
      LENGTH: 512,
    },
    aliases={
      'n_token': 'vocab_size',
      'hidden_size': 'd_model',
      'num_attention_heads': 'n_head',
      'num_hidden_layers': 'n_layer',
    },
  ),
  rules=(
    *table('transformer.word_embedding', 'embedding'),
    Rule('transformer.mask_emb', ('mask/table',), flat=False, ones=1),
    *table('lm_loss', 'head'),
    Rule('lm_loss.bias', ('head/bias',)),
    _attention('q', 'query/kernel', inputs=1),
    _attention('k', 'key/kernel', inputs=1),
    _attention('v', 'value/kernel', inputs=1),
    _attention('o', 'out/kernel', inputs=2, transposed=True),
    _attention('r', 'relative/position/kernel', inputs=1),
    _attention('r_w_bias', 'relative/content_bias'),
    _attention('r_r_bias', 'relative/position_bias'),
    _attention('r_s_bias', 'relative/type_bias'),
    _attention('seg_embed', 'relative/type_table'),
    *norm('transformer.layer.{layer}.rel_attn.layer_norm', '{layer}/attention_norm'),
    *dense('transformer.layer.{layer}.ff.layer_1', '{layer}/mlp/up'),
    *dense('transformer.layer.{layer}.ff.layer_2', '{layer}/mlp/down'),
    *norm('transformer.layer.{layer}.ff.layer_norm', '{layer}/mlp_norm'),
  ),
  prefix='transformer.',
  duplicates={'lm_loss.weight': 'transformer.word_embedding.weight'},
  objective='permutation',
)
