"""Switch Transformer (Fedus et al. 2021, table 9): T5 with experts in every other layer, one a token."""

from configs import presets

SIZES = {
  'base-8': {'moe.num_experts': 8},
  'base-16': {'moe.num_experts': 16},
  'base-32': {'moe.num_experts': 32},
  'base-64': {'moe.num_experts': 64},
  'base-128': {'moe.num_experts': 128},
  'base-256': {'moe.num_experts': 256},
  'large-128': {'num_layers': 24, 'embed_dim': 1024, 'num_heads': 16, 'mlp_dim': 4096, 'moe.num_experts': 128},
}
BASE = {'num_layers': 12, 'embed_dim': 768, 'num_heads': 12, 'mlp_dim': 3072}


def get_config(variant: str = ''):
  """Returns the config of a variant."""
  config = presets.create(
    'switch',
    SIZES,
    variant,
    'span_corruption',
    **BASE,
    family='encoder_decoder',
    vocab_size=32128,
    head_dim=64,
    positions='t5',
    norm_epsilon=1e-06,
    activation='relu',
    gated_mlp=False,
    attention={'scale': 1.0},
    moe={'experts_per_token': 1, 'every': 2, 'capacity_factor': 1.25, 'z_loss': 0.001, 'jitter': 0.01},
    dropout_rate=0.1,
  )
  config.model.logit_scale = config.model.embed_dim**-0.5
  return config
