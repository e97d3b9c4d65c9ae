"""Qwen3, the models with experts (Yang et al. 2025, table 2)."""

from configs import presets

SIZES = {
  '30b-a3b': {'num_layers': 48, 'embed_dim': 2048, 'num_heads': 32, 'mlp_dim': 6144, 'moe.mlp_dim': 768},
  '235b-a22b': {'num_layers': 94, 'embed_dim': 4096, 'num_heads': 64, 'mlp_dim': 12288, 'moe.mlp_dim': 1536},
}


def get_config(variant: str = ''):
  """Returns the config of a variant."""
  return presets.create(
    'qwen3_moe',
    SIZES,
    variant,
    vocab_size=151936,
    num_kv_heads=4,
    head_dim=128,
    norm_epsilon=1e-06,
    tie_embeddings=False,
    rope={'theta': 1000000.0},
    attention={'qk_norm': True},
    moe={'num_experts': 128, 'experts_per_token': 8, 'normalize': True, 'balance_loss': 0.001},
  )
