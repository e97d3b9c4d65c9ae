"""gpt-oss (OpenAI 2025, table 1): experts, attention sinks, every other layer sees a window."""

from configs import presets

SIZES = {
  '20b': {'num_layers': 24, 'embed_dim': 2880, 'num_heads': 64, 'mlp_dim': 2880, 'moe.num_experts': 32},
  '120b': {'num_layers': 36, 'embed_dim': 2880, 'num_heads': 64, 'mlp_dim': 2880, 'moe.num_experts': 128},
}


def get_config(variant: str = ''):
  """Returns the config of a variant."""
  return presets.create(
    'gpt_oss',
    SIZES,
    variant,
    vocab_size=201088,
    num_kv_heads=8,
    head_dim=64,
    norm_epsilon=1e-05,
    activation='swiglu_oss',
    use_bias=True,
    tie_embeddings=False,
    rope={'theta': 150000.0, 'scaling': 'yarn', 'factor': 32.0, 'original_length': 4096, 'truncate': False},
    attention={'sinks': True, 'window': 128, 'pattern': ('local', 'global')},
    moe={'experts_per_token': 4, 'normalize': True, 'router_bias': True},
  )
