"""GPT-NeoX-20B (Black et al. 2022) and Pythia (Biderman et al. 2023, table 1)."""

from configs import presets

SIZES = {
  '20b': {'num_layers': 44, 'embed_dim': 6144, 'num_heads': 64, 'vocab_size': 50432, 'activation': 'gelu_tanh'},
  '70m': {'num_layers': 6, 'embed_dim': 512, 'num_heads': 8},
  '160m': {'num_layers': 12, 'embed_dim': 768, 'num_heads': 12},
  '410m': {'num_layers': 24, 'embed_dim': 1024, 'num_heads': 16},
  '1b': {'num_layers': 16, 'embed_dim': 2048, 'num_heads': 8},
  '1.4b': {'num_layers': 24, 'embed_dim': 2048, 'num_heads': 16},
  '2.8b': {'num_layers': 32, 'embed_dim': 2560, 'num_heads': 32},
  '6.9b': {'num_layers': 32, 'embed_dim': 4096, 'num_heads': 32, 'vocab_size': 50432},
  '12b': {'num_layers': 36, 'embed_dim': 5120, 'num_heads': 40, 'vocab_size': 50688},
}


def get_config(variant: str = ''):
  """Returns the config of a variant."""
  return presets.create(
    'gpt_neox',
    SIZES,
    variant,
    vocab_size=50304,
    norm='layernorm',
    use_bias=True,
    parallel_blocks=True,
    activation='gelu',
    gated_mlp=False,
    tie_embeddings=False,
    rope={'fraction': 0.25},
  )
