"""Llama (Touvron et al. 2023; Grattafiori et al. 2024): rotary positions, RMSNorm, gated feed-forward, shared keys."""

from interop.family import Family
from interop.fields import ACTIVATIONS, LENGTH, Field, Fields, free, key
from interop.rotary import rotary
from interop.rules import dense, norm, table

# What Mistral, Qwen and other successors share with it.
MODEL = {'positions': 'rope', 'norm': 'rmsnorm', 'gated_mlp': True}
SIZES = (
  key('hidden_size', 'embed_dim', 4096),
  key('num_hidden_layers', 'num_layers', 32),
  key('num_attention_heads', 'num_heads', 32),
  key('head_dim', 'head_dim', None),
  key('hidden_act', 'activation', 'silu', ACTIVATIONS),
  key('rms_norm_eps', 'norm_epsilon', 1e-6),
  key('attention_dropout', 'attention.dropout_rate', 0.0),
  key('tie_word_embeddings', 'tie_embeddings', False),
)
RULES = (
  *table('model.embed_tokens', 'embedding'),
  *norm('model.norm', 'final_norm'),
  *table('lm_head', 'head'),
  *norm('model.layers.{layer}.input_layernorm', '{layer}/attention_norm'),
  *dense('model.layers.{layer}.self_attn.q_proj', '{layer}/attention/query'),
  *dense('model.layers.{layer}.self_attn.k_proj', '{layer}/attention/key'),
  *dense('model.layers.{layer}.self_attn.v_proj', '{layer}/attention/value'),
  *dense('model.layers.{layer}.self_attn.o_proj', '{layer}/attention/out', inputs=2),
  *norm('model.layers.{layer}.self_attn.q_norm', '{layer}/attention/query_norm'),
  *norm('model.layers.{layer}.self_attn.k_norm', '{layer}/attention/key_norm'),
  *norm('model.layers.{layer}.post_attention_layernorm', '{layer}/mlp_norm'),
  *dense('model.layers.{layer}.mlp.gate_proj', '{layer}/mlp/gate'),
  *dense('model.layers.{layer}.mlp.up_proj', '{layer}/mlp/up'),
  *dense('model.layers.{layer}.mlp.down_proj', '{layer}/mlp/down'),
)
PREFIX = 'model.'
DUPLICATES = {'lm_head.weight': 'model.embed_tokens.weight'}
BUFFERS = r'model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq'


def biases(attention: str, mlp: str | None) -> Field:
  """The fields that say whether attention and feed-forward have biases; `mlp` None: it never has."""

  def read(values):
    of_attention, of_mlp = values.get(attention, False), values.get(mlp, False)
    return {
      'use_bias': of_mlp,
      'attention.bias': 'model' if of_attention == of_mlp else 'all' if of_attention else 'none',
    }

  def write(model):
    of_attention = {'model': model['use_bias'], 'all': True}.get(model['attention.bias'], False)
    return {attention: of_attention} | ({mlp: model['use_bias']} if mlp else {})

  return Field((attention, mlp) if mlp else (attention,), read, write)


FAMILY = Family(
  name='llama',
  architectures=('LlamaForCausalLM', 'LlamaModel'),
  fields=Fields(
    (
      key('vocab_size', 'vocab_size', 32000),
      *SIZES,
      key('intermediate_size', 'mlp_dim', 11008),
      key('num_key_value_heads', 'num_kv_heads', None),
      key('max_position_embeddings', LENGTH, 2048),
      biases('attention_bias', 'mlp_bias'),
      rotary(),
      free('pretraining_tp'),
    ),
    MODEL,
  ),
  rules=RULES,
  prefix=PREFIX,
  duplicates=DUPLICATES,
  buffers=BUFFERS,
)
