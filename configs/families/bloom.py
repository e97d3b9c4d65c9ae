"""BLOOM (Le Scao et al. 2022, table 3): linear biases, a norm after the embedding."""

from configs import presets

SIZES = {
  '560m': {'num_layers': 24, 'embed_dim': 1024, 'num_heads': 16},
  '1b1': {'num_layers': 24, 'embed_dim': 1536, 'num_heads': 16},
  '1b7': {'num_layers': 24, 'embed_dim': 2048, 'num_heads': 16},
  '3b': {'num_layers': 30, 'embed_dim': 2560, 'num_heads': 32},
  '7b1': {'num_layers': 30, 'embed_dim': 4096, 'num_heads': 32},
  '176b': {'num_layers': 70, 'embed_dim': 14336, 'num_heads': 112},
}


def get_config(variant: str = ''):
  """Returns the config of a variant."""
  return presets.create(
    'bloom',
    SIZES,
    variant,
    vocab_size=250880,
    positions='alibi',
    embedding_norm=True,
    norm='layernorm',
    use_bias=True,
    activation='gelu_tanh',
    gated_mlp=False,
  )
