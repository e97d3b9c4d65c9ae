"""Gemma 3, the text models (Kamath et al. 2025): five local layers to a global one."""

from configs import presets

LARGE = {'vocab_size': 262208, 'attention.window': 1024, 'rope.scaling': 'linear', 'rope.factor': 8.0}
NARROW = {'head_dim': 128, 'attention.scale': 168**-0.5}
SIZES = {
  '270m': {'num_layers': 18, 'embed_dim': 640, 'num_heads': 4, 'mlp_dim': 2048, 'num_kv_heads': 1},
  '1b': {'num_layers': 26, 'embed_dim': 1152, 'num_heads': 4, 'mlp_dim': 6912, 'num_kv_heads': 1},
  '4b': LARGE | {'num_layers': 34, 'embed_dim': 2560, 'num_heads': 8, 'mlp_dim': 10240, 'num_kv_heads': 4},
  '12b': LARGE | {'num_layers': 48, 'embed_dim': 3840, 'num_heads': 16, 'mlp_dim': 15360, 'num_kv_heads': 8},
  '27b': LARGE | NARROW | {'num_layers': 62, 'embed_dim': 5376, 'num_heads': 32, 'mlp_dim': 21504, 'num_kv_heads': 16},
}


def get_config(variant: str = ''):
  """Returns the config of a variant."""
  config = presets.create(
    'gemma3',
    SIZES,
    variant,
    vocab_size=262144,
    head_dim=256,
    norm_epsilon=1e-06,
    norm_position='sandwich',
    norm_unit_offset=True,
    activation='gelu_tanh',
    rope={'theta': 1000000.0, 'local_theta': 10000.0},
    attention={'qk_norm': True, 'window': 512, 'pattern': ('local',) * 5 + ('global',)},
  )
  config.model.embedding_scale = config.model.embed_dim**0.5
  return config
