"""XLNet (Yang et al. 2019, appendix A.4)."""

from configs import presets

SIZES = {
  'base': {'num_layers': 12, 'embed_dim': 768, 'num_heads': 12},
  'large': {'num_layers': 24, 'embed_dim': 1024, 'num_heads': 16},
}


def get_config(variant: str = ''):
  """Returns the config of a variant."""
  return presets.create(
    'xlnet',
    SIZES,
    variant,
    'permutation',
    vocab_size=32000,
    positions='xlnet',
    token_types=2,
    norm='layernorm',
    norm_position='post',
    norm_epsilon=1e-12,
    activation='gelu',
    gated_mlp=False,
    use_bias=True,
    head_bias=True,
    dropout_rate=0.1,
    attention={'bias': 'none', 'dropout_rate': 0.1},
  )
