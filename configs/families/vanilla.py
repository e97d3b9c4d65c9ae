"""The Transformer (Vaswani et al. 2017, table 3), with a vocabulary for English and German."""

from configs import presets

SIZES = {
  'base': {'num_layers': 6, 'embed_dim': 512, 'num_heads': 8},
  'big': {'num_layers': 6, 'embed_dim': 1024, 'num_heads': 16, 'dropout_rate': 0.3},
}


def get_config(variant: str = ''):
  """Returns the config of a variant."""
  config = presets.create(
    'vanilla',
    SIZES,
    variant,
    family='encoder_decoder',
    vocab_size=37000,
    positions='sinusoidal',
    norm='layernorm',
    norm_position='post',
    activation='relu',
    gated_mlp=False,
    use_bias=True,
    init='xavier',
    init_scale=1.0,
    init_depth_scaling=False,
    dropout_rate=0.1,
  )
  config.model.embedding_scale = config.model.embed_dim**0.5
  return config
