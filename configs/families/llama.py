"""Llama 2 (Touvron et al. 2023, table 1), Llama 3 (Grattafiori et al. 2024, table 3), 3.1 and 3.2."""

from configs import presets

LLAMA3 = {'vocab_size': 128256, 'num_kv_heads': 8, 'rope.theta': 500000.0}
LLAMA31 = LLAMA3 | {'rope.scaling': 'llama3', 'rope.factor': 8.0, 'rope.original_length': 8192}
LLAMA32 = LLAMA31 | {'rope.factor': 32.0, 'tie_embeddings': True}
SIZES = {
  '2-7b': {'num_layers': 32, 'embed_dim': 4096, 'num_heads': 32, 'mlp_dim': 11008},
  '2-13b': {'num_layers': 40, 'embed_dim': 5120, 'num_heads': 40, 'mlp_dim': 13824},
  '2-70b': {'num_layers': 80, 'embed_dim': 8192, 'num_heads': 64, 'mlp_dim': 28672, 'num_kv_heads': 8},
  '3-8b': LLAMA3 | {'num_layers': 32, 'embed_dim': 4096, 'num_heads': 32, 'mlp_dim': 14336},
  '3-70b': LLAMA3 | {'num_layers': 80, 'embed_dim': 8192, 'num_heads': 64, 'mlp_dim': 28672},
  '3.1-8b': LLAMA31 | {'num_layers': 32, 'embed_dim': 4096, 'num_heads': 32, 'mlp_dim': 14336},
  '3.1-70b': LLAMA31 | {'num_layers': 80, 'embed_dim': 8192, 'num_heads': 64, 'mlp_dim': 28672},
  '3.1-405b': LLAMA31 | {'num_layers': 126, 'embed_dim': 16384, 'num_heads': 128, 'mlp_dim': 53248},
  '3.2-1b': LLAMA32 | {'num_layers': 16, 'embed_dim': 2048, 'num_heads': 32, 'mlp_dim': 8192},
  '3.2-3b': LLAMA32 | {'num_layers': 28, 'embed_dim': 3072, 'num_heads': 24, 'mlp_dim': 8192},
}


def get_config(variant: str = ''):
  """Returns the config of a variant."""
  return presets.create('llama', SIZES, variant, vocab_size=32000, norm_epsilon=1e-05, tie_embeddings=False)
