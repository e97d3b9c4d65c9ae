"""ModernBERT (Warner et al. 2024, table 4): two of three layers see 64 tokens to either side."""

from configs import presets

SIZES = {
  'base': {'num_layers': 22, 'embed_dim': 768, 'num_heads': 12, 'mlp_dim': 1152},
  'large': {'num_layers': 28, 'embed_dim': 1024, 'num_heads': 16, 'mlp_dim': 2624},
}


def get_config(variant: str = ''):
  """Returns the config of a variant."""
  return presets.create(
    'modernbert',
    SIZES,
    variant,
    'masked',
    family='encoder',
    vocab_size=50368,
    embedding_norm=True,
    first_norm=False,
    norm='layernorm',
    activation='gelu',
    head_transform=True,
    head_bias=True,
    rope={'theta': 160000.0, 'local_theta': 10000.0},
    attention={'window': 65, 'pattern': ('global', 'local', 'local')},
  )
