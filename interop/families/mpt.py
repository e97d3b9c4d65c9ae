"""MPT (MosaicML 2023): ALiBi, no biases anywhere, fused queries, keys and values."""

from interop.family import Family
from interop.fields import COMMON, LENGTH, Field, Fields, free, key, must, refused
from interop.rules import dense, norm, table

_ATTENTION = {
  'attn_type': 'multihead_attention',
  'clip_qkv': None,
  'prefix_lm': False,
  'qk_ln': False,
  'attn_uses_sequence_id': False,
  'alibi': True,
  'alibi_bias_max': 8,
  'attn_pdrop': 0,
}
_FREE = ('attn_impl', *(name for field in COMMON for name in field.names))


def _read(values):
  entries = values.get('attn_config') or {}
  for name, value in entries.items():
    if name in _ATTENTION and value != _ATTENTION[name]:
      raise refused(f'attn_config.{name}', value, repr(_ATTENTION[name]))
    if name not in (*_ATTENTION, *_FREE, 'softmax_scale') and value is not None:
      raise refused(f'attn_config.{name}', value, f'nothing of that name; known are {", ".join(_ATTENTION)}')
  return {'attention.scale': entries.get('softmax_scale') or 0.0}


def _write(model):
  return {'attn_config': _ATTENTION | {'softmax_scale': model['attention.scale'] or None}}


FAMILY = Family(
  name='mpt',
  architectures=('MptForCausalLM', 'MPTForCausalLM', 'MptModel'),
  fields=Fields(
    (
      key('vocab_size', 'vocab_size', 50368),
      key('d_model', 'embed_dim', 2048),
      key('n_layers', 'num_layers', 24),
      key('n_heads', 'num_heads', 16),
      key('max_seq_len', LENGTH, 2048),
      key('layer_norm_epsilon', 'norm_epsilon', 1e-5),
      key('tie_word_embeddings', 'tie_embeddings', True),
      Field(('attn_config',), _read, _write),
      must('expansion_ratio', 4),
      must('resid_pdrop', 0.0),
      must('emb_pdrop', 0.0),
      must('no_bias', True),
      must('logit_scale', None),
      must('embedding_fraction', 1.0),
      free('learned_pos_emb', 'init_device', 'norm_type', 'init_config', 'verbose', 'tokenizer_name', 'auto_map'),
    ),
    {'positions': 'alibi', 'norm': 'layernorm', 'activation': 'gelu', 'gated_mlp': False},
    aliases={'hidden_size': 'd_model', 'num_attention_heads': 'n_heads', 'num_hidden_layers': 'n_layers'},
  ),
  rules=(
    *table('transformer.wte', 'embedding'),
    *norm('transformer.norm_f', 'final_norm'),
    *table('lm_head', 'head'),
    *norm('transformer.blocks.{layer}.norm_1', '{layer}/attention_norm'),
    *dense(
      'transformer.blocks.{layer}.attn.Wqkv',
      '{layer}/attention/query',
      '{layer}/attention/key',
      '{layer}/attention/value',
    ),
    *dense('transformer.blocks.{layer}.attn.out_proj', '{layer}/attention/out', inputs=2),
    *norm('transformer.blocks.{layer}.norm_2', '{layer}/mlp_norm'),
    *dense('transformer.blocks.{layer}.ffn.up_proj', '{layer}/mlp/up'),
    *dense('transformer.blocks.{layer}.ffn.down_proj', '{layer}/mlp/down'),
  ),
  prefix='transformer.',
  duplicates={'lm_head.weight': 'transformer.wte.weight'},
)
