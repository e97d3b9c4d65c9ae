"""BLOOM (Le Scao et al. 2022): ALiBi, a norm after the embedding, queries, keys and values fused head by head."""

from interop.family import Family
from interop.fields import LENGTH, Field, Fields, free, key, must
from interop.rules import dense, norm, table

FAMILY = Family(
  name='bloom',
  architectures=('BloomForCausalLM', 'BloomModel'),
  fields=Fields(
    (
      key('vocab_size', 'vocab_size', 250880),
      key('hidden_size', 'embed_dim', 64),
      key('n_layer', 'num_layers', 2),
      key('n_head', 'num_heads', 8),
      Field(('seq_length',), lambda values: {LENGTH: values.get('seq_length', 2048)}, lambda model: {}),
      key('layer_norm_epsilon', 'norm_epsilon', 1e-5),
      key('hidden_dropout', 'dropout_rate', 0.0),
      key('attention_dropout', 'attention.dropout_rate', 0.0),
      key('tie_word_embeddings', 'tie_embeddings', True),
      must('apply_residual_connection_post_layernorm', False),
      free('pretraining_tp', 'slow_but_exact', 'attention_softmax_in_fp32', 'masked_softmax_fusion'),
      free('bias_dropout_fusion', 'offset_alibi', 'skip_bias_add', 'skip_bias_add_qkv', 'unk_token_id'),
    ),
    {
      'positions': 'alibi',
      'norm': 'layernorm',
      'embedding_norm': True,
      'activation': 'gelu_tanh',
      'gated_mlp': False,
      'use_bias': True,
    },
    aliases={'n_embed': 'hidden_size', 'num_attention_heads': 'n_head', 'num_hidden_layers': 'n_layer'},
  ),
  rules=(
    *table('transformer.word_embeddings', 'embedding'),
    *norm('transformer.word_embeddings_layernorm', 'embedding_norm'),
    *norm('transformer.ln_f', 'final_norm'),
    *table('lm_head', 'head'),
    *norm('transformer.h.{layer}.input_layernorm', '{layer}/attention_norm'),
    *dense(
      'transformer.h.{layer}.self_attention.query_key_value',
      '{layer}/attention/query',
      '{layer}/attention/key',
      '{layer}/attention/value',
      interleaved=True,
    ),
    *dense('transformer.h.{layer}.self_attention.dense', '{layer}/attention/out', inputs=2),
    *norm('transformer.h.{layer}.post_attention_layernorm', '{layer}/mlp_norm'),
    *dense('transformer.h.{layer}.mlp.dense_h_to_4h', '{layer}/mlp/up'),
    *dense('transformer.h.{layer}.mlp.dense_4h_to_h', '{layer}/mlp/down'),
  ),
  prefix='transformer.',
  duplicates={'lm_head.weight': 'transformer.word_embeddings.weight'},
)
