"""Mixtral (Jiang et al. 2024): Mistral with experts in every layer, of which each token passes two."""

from interop import windows
from interop.families import llama
from interop.family import Family
from interop.fields import LENGTH, Field, Fields, free, key, must
from interop.rotary import rotary
from interop.rules import dense

# Of other families with experts too: what is said of training them, and the loss of the router.
TRAINING = free('output_router_logits', 'router_aux_loss_coef')
_EXPERT = 'model.layers.{layer}.block_sparse_moe.experts.{expert}'
FAMILY = Family(
  name='mixtral',
  architectures=('MixtralForCausalLM', 'MixtralModel'),
  fields=Fields(
    (
      key('vocab_size', 'vocab_size', 32000),
      *llama.SIZES,
      key('rms_norm_eps', 'norm_epsilon', 1e-5),
      Field(
        ('intermediate_size',),
        lambda values: dict.fromkeys(('mlp_dim', 'moe.mlp_dim'), values.get('intermediate_size', 14336)),
        lambda model: {'intermediate_size': model['moe.mlp_dim']},
      ),
      key('num_key_value_heads', 'num_kv_heads', 8),
      key('max_position_embeddings', LENGTH, 4096 * 32),
      key('num_local_experts', 'moe.num_experts', 8),
      key('num_experts_per_tok', 'moe.experts_per_token', 2),
      windows.in_every_layer('sliding_window', None),
      rotary(default_theta=1e6),
      must('router_jitter_noise', 0.0),  # there it acts on what the experts read too
      TRAINING,
    ),
    llama.MODEL | {'moe.router': 'softmax', 'moe.normalize': True},
    aliases={'num_experts': 'num_local_experts'},
  ),
  rules=(
    *llama.RULES,
    *dense('model.layers.{layer}.block_sparse_moe.gate', '{layer}/mlp/router'),
    *dense(f'{_EXPERT}.w1', '{layer}/mlp/experts/gate'),
    *dense(f'{_EXPERT}.w2', '{layer}/mlp/experts/down'),
    *dense(f'{_EXPERT}.w3', '{layer}/mlp/experts/up'),
  ),
  prefix=llama.PREFIX,
  duplicates=llama.DUPLICATES,
  buffers=llama.BUFFERS,
)
