"""Mistral 7B (Jiang et al. 2023, table 1): every layer sees a window."""

from configs import presets

SIZES = {'7b': {'num_layers': 32, 'embed_dim': 4096, 'num_heads': 32, 'mlp_dim': 14336}}


def get_config(variant: str = ''):
  """Returns the config of a variant."""
  return presets.create(
    'mistral',
    SIZES,
    variant,
    vocab_size=32000,
    num_kv_heads=8,
    norm_epsilon=1e-05,
    tie_embeddings=False,
    attention={'window': 4096, 'pattern': ('local',)},
  )
