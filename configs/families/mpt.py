"""MPT (MosaicML 2023): linear biases, no other bias anywhere."""

from configs import presets

SIZES = {
  '7b': {'num_layers': 32, 'embed_dim': 4096, 'num_heads': 32},
  '30b': {'num_layers': 48, 'embed_dim': 7168, 'num_heads': 64},
}


def get_config(variant: str = ''):
  """Returns the config of a variant."""
  return presets.create(
    'mpt', SIZES, variant, vocab_size=50432, positions='alibi', norm='layernorm', activation='gelu', gated_mlp=False
  )
