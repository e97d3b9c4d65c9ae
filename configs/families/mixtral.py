"""Mixtral (Jiang et al. 2024, table 1): each token passes two of eight experts."""

from configs import presets

SIZES = {
  '8x7b': {'num_layers': 32, 'embed_dim': 4096, 'num_heads': 32, 'mlp_dim': 14336, 'vocab_size': 32000},
  '8x22b': {'num_layers': 56, 'embed_dim': 6144, 'num_heads': 48, 'mlp_dim': 16384, 'vocab_size': 32768},
}


def get_config(variant: str = ''):
  """Returns the config of a variant."""
  return presets.create(
    'mixtral',
    SIZES,
    variant,
    num_kv_heads=8,
    norm_epsilon=1e-05,
    tie_embeddings=False,
    rope={'theta': 1000000.0},
    moe={'num_experts': 8, 'experts_per_token': 2, 'normalize': True, 'balance_loss': 0.02},
  )
