"""Qwen3, the dense models (Yang et al. 2025, table 1)."""

from configs import presets

SIZES = {
  '0.6b': {'num_layers': 28, 'embed_dim': 1024, 'num_heads': 16, 'mlp_dim': 3072},
  '1.7b': {'num_layers': 28, 'embed_dim': 2048, 'num_heads': 16, 'mlp_dim': 6144},
  '4b': {'num_layers': 36, 'embed_dim': 2560, 'num_heads': 32, 'mlp_dim': 9728},
  '8b': {'num_layers': 36, 'embed_dim': 4096, 'num_heads': 32, 'mlp_dim': 12288, 'tie_embeddings': False},
  '14b': {'num_layers': 40, 'embed_dim': 5120, 'num_heads': 40, 'mlp_dim': 17408, 'tie_embeddings': False},
  '32b': {'num_layers': 64, 'embed_dim': 5120, 'num_heads': 64, 'mlp_dim': 25600, 'tie_embeddings': False},
}


def get_config(variant: str = ''):
  """Returns the config of a variant."""
  return presets.create(
    'qwen3',
    SIZES,
    variant,
    vocab_size=151936,
    num_kv_heads=8,
    head_dim=128,
    norm_epsilon=1e-06,
    rope={'theta': 1000000.0},
    attention={'qk_norm': True},
  )
