"""Switch Transformers (Fedus et al. 2022): T5 whose every other layer sends each token to one of its experts."""

from configs import presets

BASE = {'num_layers': 12, 'embed_dim': 768, 'num_heads': 12, 'mlp_dim': 3072}
SIZES = {f'base-{experts}': BASE | {'moe': {'num_experts': experts}} for experts in (8, 16, 32, 64, 128, 256)}
SIZES['large-128'] = {
  'num_layers': 24,
  'embed_dim': 1024,
  'num_heads': 16,
  'mlp_dim': 4096,
  'moe': {'num_experts': 128},
}


def get_config(variant: str = ''):
  """Returns the config of a variant."""
  config = presets.create(
    'switch',
    SIZES,
    variant,
    'span_corruption',
    family='encoder_decoder',
    start_token=0,
    vocab_size=32128,
    head_dim=64,
    positions='t5',
    norm_epsilon=1e-06,
    activation='relu',
    gated_mlp=False,
    attention={'scale': 1.0, 'dropout_rate': 0.1},
    dropout_rate=0.1,
  )
  config.model.moe.update(experts_per_token=1, every=2, expert_capacity=64, jitter=0.01)
  config.model.moe.update(balance_loss=0.001, z_loss=0.001)
  config.model.logit_scale = config.model.embed_dim**-0.5
  return config
