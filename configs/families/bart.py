"""BART (Lewis et al. 2020, section 5)."""

from configs import presets

SIZES = {
  'base': {'num_layers': 6, 'embed_dim': 768, 'num_heads': 12},
  'large': {'num_layers': 12, 'embed_dim': 1024, 'num_heads': 16},
}


def get_config(variant: str = ''):
  """Returns the config of a variant."""
  return presets.create(
    'bart',
    SIZES,
    variant,
    'denoising',
    family='encoder_decoder',
    vocab_size=50265,
    max_length=1024,
    positions='learned',
    position_offset=2,
    embedding_norm=True,
    norm='layernorm',
    norm_position='post',
    activation='gelu',
    gated_mlp=False,
    use_bias=True,
    head_bias=True,
    start_token=2,
    forced_last_token=2,
    dropout_rate=0.1,
  )
