"""GPT-NeoX and Pythia (Black et al. 2022): attention beside the feed-forward, rotation of a share of each head."""

from interop.family import Family
from interop.fields import ACTIVATIONS, LENGTH, Field, Fields, free, key
from interop.rotary import rotary
from interop.rules import dense, norm, table

FAMILY = Family(
  name='gpt_neox',
  architectures=('GPTNeoXForCausalLM', 'GPTNeoXModel'),
  fields=Fields(
    (
      key('vocab_size', 'vocab_size', 50432),
      key('hidden_size', 'embed_dim', 6144),
      key('num_hidden_layers', 'num_layers', 44),
      key('num_attention_heads', 'num_heads', 64),
      key('intermediate_size', 'mlp_dim', 24576),
      key('hidden_act', 'activation', 'gelu', {'gelu': 'gelu'} | ACTIVATIONS),
      key('attention_dropout', 'attention.dropout_rate', 0.0),
      key('hidden_dropout', 'dropout_rate', 0.0),
      key('layer_norm_eps', 'norm_epsilon', 1e-5),
      key('max_position_embeddings', LENGTH, 2048),
      key('use_parallel_residual', 'parallel_blocks', True),
      key('tie_word_embeddings', 'tie_embeddings', False),
      Field(
        ('attention_bias',),
        lambda values: {'attention.bias': 'model' if values.get('attention_bias', True) else 'none'},
        lambda model: {'attention_bias': model['attention.bias'] in ('model', 'all')},
      ),
      rotary('rotary_emb_base', 'rotary_pct', 0.25),
      free('classifier_dropout'),
    ),
    {'positions': 'rope', 'norm': 'layernorm', 'gated_mlp': False, 'use_bias': True},
  ),
  rules=(
    *table('gpt_neox.embed_in', 'embedding'),
    *norm('gpt_neox.final_layer_norm', 'final_norm'),
    *table('embed_out', 'head'),
    *norm('gpt_neox.layers.{layer}.input_layernorm', '{layer}/attention_norm'),
    *dense(
      'gpt_neox.layers.{layer}.attention.query_key_value',
      '{layer}/attention/query',
      '{layer}/attention/key',
      '{layer}/attention/value',
      interleaved=True,
    ),
    *dense('gpt_neox.layers.{layer}.attention.dense', '{layer}/attention/out', inputs=2),
    *norm('gpt_neox.layers.{layer}.post_attention_layernorm', '{layer}/mlp_norm'),
    *dense('gpt_neox.layers.{layer}.mlp.dense_h_to_4h', '{layer}/mlp/up'),
    *dense('gpt_neox.layers.{layer}.mlp.dense_4h_to_h', '{layer}/mlp/down'),
  ),
  prefix='gpt_neox.',
  duplicates={'embed_out.weight': 'gpt_neox.embed_in.weight'},
  buffers=r'gpt_neox\.layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)',
)
