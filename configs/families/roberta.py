"""RoBERTa (Liu et al. 2019): BERT without segments; positions begin behind the row of padding."""

from configs import presets

SIZES = {
  'base': {'num_layers': 12, 'embed_dim': 768, 'num_heads': 12},
  'large': {'num_layers': 24, 'embed_dim': 1024, 'num_heads': 16},
}


def get_config(variant: str = ''):
  """Returns the config of a variant."""
  return presets.create(
    'roberta',
    SIZES,
    variant,
    'masked',
    family='encoder',
    vocab_size=50265,
    max_length=512,
    positions='learned',
    position_offset=2,
    token_types=1,
    embedding_norm=True,
    norm='layernorm',
    norm_position='post',
    activation='gelu',
    gated_mlp=False,
    use_bias=True,
    head_transform=True,
    head_bias=True,
    dropout_rate=0.1,
    attention={'dropout_rate': 0.1},
  )
