"""GPT-2 (Radford et al. 2019, table 2)."""

from configs import presets

SIZES = {
  '124m': {'num_layers': 12, 'embed_dim': 768, 'num_heads': 12},
  '355m': {'num_layers': 24, 'embed_dim': 1024, 'num_heads': 16},
  '774m': {'num_layers': 36, 'embed_dim': 1280, 'num_heads': 20},
  '1.5b': {'num_layers': 48, 'embed_dim': 1600, 'num_heads': 25},
}


def get_config(variant: str = ''):
  """Returns the config of a variant."""
  return presets.create(
    'gpt2',
    SIZES,
    variant,
    vocab_size=50257,
    max_length=1024,
    positions='learned',
    norm='layernorm',
    use_bias=True,
    activation='gelu_tanh',
    gated_mlp=False,
  )
