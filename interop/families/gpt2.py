"""GPT-2 (Radford et al. 2019): learned positions, fused queries, keys and values, weights stored [inputs, outputs]."""

from interop.family import Family
from interop.fields import ACTIVATIONS, LENGTH, Fields, equal, free, key, must
from interop.rules import conv1d, norm, table

FAMILY = Family(
  name='gpt2',
  architectures=('GPT2LMHeadModel', 'GPT2Model'),
  fields=Fields(
    (
      key('vocab_size', 'vocab_size', 50257),
      key('n_positions', 'max_length', 1024),
      key('n_positions', LENGTH, 1024),
      key('n_embd', 'embed_dim', 768),
      key('n_layer', 'num_layers', 12),
      key('n_head', 'num_heads', 12),
      key('n_inner', 'mlp_dim', None),
      key('activation_function', 'activation', 'gelu_new', {'gelu_new': 'gelu_tanh'} | ACTIVATIONS),
      key('resid_pdrop', 'dropout_rate', 0.1),
      equal('embd_pdrop', 'resid_pdrop', 'dropout_rate', 0.1),
      key('attn_pdrop', 'attention.dropout_rate', 0.1),
      key('layer_norm_epsilon', 'norm_epsilon', 1e-5),
      key('tie_word_embeddings', 'tie_embeddings', True),
      must('scale_attn_weights', True),
      must('scale_attn_by_inverse_layer_idx', False),
      free('n_ctx', 'reorder_and_upcast_attn', 'summary_type', 'summary_use_proj', 'summary_activation'),
      free('summary_proj_to_labels', 'summary_first_dropout'),
    ),
    model={'positions': 'learned', 'norm': 'layernorm', 'gated_mlp': False, 'use_bias': True},
  ),
  rules=(
    *table('transformer.wte', 'embedding'),
    *table('transformer.wpe', 'position'),
    *norm('transformer.ln_f', 'final_norm'),
    *table('lm_head', 'head'),
    *norm('transformer.h.{layer}.ln_1', '{layer}/attention_norm'),
    *conv1d(
      'transformer.h.{layer}.attn.c_attn', '{layer}/attention/query', '{layer}/attention/key', '{layer}/attention/value'
    ),
    *conv1d('transformer.h.{layer}.attn.c_proj', '{layer}/attention/out', inputs=2),
    *norm('transformer.h.{layer}.ln_2', '{layer}/mlp_norm'),
    *conv1d('transformer.h.{layer}.mlp.c_fc', '{layer}/mlp/up'),
    *conv1d('transformer.h.{layer}.mlp.c_proj', '{layer}/mlp/down'),
  ),
  prefix='transformer.',
  duplicates={'lm_head.weight': 'transformer.wte.weight'},
  buffers=r'transformer\.h\.\d+\.attn\.(masked_)?bias',
)
