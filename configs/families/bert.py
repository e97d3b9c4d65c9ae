"""BERT (Devlin et al. 2019), uncased, and its small versions (Turc et al. 2019, table 1)."""

from configs import presets

SIZES = {
  'base': {'num_layers': 12, 'embed_dim': 768, 'num_heads': 12},
  'large': {'num_layers': 24, 'embed_dim': 1024, 'num_heads': 16},
  'tiny': {'num_layers': 2, 'embed_dim': 128, 'num_heads': 2},
  'mini': {'num_layers': 4, 'embed_dim': 256, 'num_heads': 4},
  'small': {'num_layers': 4, 'embed_dim': 512, 'num_heads': 8},
  'medium': {'num_layers': 8, 'embed_dim': 512, 'num_heads': 8},
}


def get_config(variant: str = ''):
  """Returns the config of a variant."""
  return presets.create(
    'bert',
    SIZES,
    variant,
    'masked',
    family='encoder',
    vocab_size=30522,
    max_length=512,
    positions='learned',
    token_types=2,
    embedding_norm=True,
    norm='layernorm',
    norm_position='post',
    norm_epsilon=1e-12,
    activation='gelu',
    gated_mlp=False,
    use_bias=True,
    head_transform=True,
    head_bias=True,
    dropout_rate=0.1,
    attention={'dropout_rate': 0.1},
  )
