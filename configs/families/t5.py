"""T5 (Raffel et al. 2020, section 3.7) and T5 1.1, whose shapes Flan-T5 has (Shazeer 2020; Chung et al. 2022)."""

from configs import presets

V11 = {'gated_mlp': True, 'activation': 'gelu_tanh', 'tie_embeddings': False}
SIZES = {
  'small': {'num_layers': 6, 'embed_dim': 512, 'num_heads': 8, 'mlp_dim': 2048},
  'base': {'num_layers': 12, 'embed_dim': 768, 'num_heads': 12, 'mlp_dim': 3072},
  'large': {'num_layers': 24, 'embed_dim': 1024, 'num_heads': 16, 'mlp_dim': 4096},
  '3b': {'num_layers': 24, 'embed_dim': 1024, 'num_heads': 32, 'mlp_dim': 16384, 'head_dim': 128},
  '11b': {'num_layers': 24, 'embed_dim': 1024, 'num_heads': 128, 'mlp_dim': 65536, 'head_dim': 128},
  '1.1-small': V11 | {'num_layers': 8, 'embed_dim': 512, 'num_heads': 6, 'mlp_dim': 1024},
  '1.1-base': V11 | {'num_layers': 12, 'embed_dim': 768, 'num_heads': 12, 'mlp_dim': 2048},
  '1.1-large': V11 | {'num_layers': 24, 'embed_dim': 1024, 'num_heads': 16, 'mlp_dim': 2816},
  '1.1-xl': V11 | {'num_layers': 24, 'embed_dim': 2048, 'num_heads': 32, 'mlp_dim': 5120},
  '1.1-xxl': V11 | {'num_layers': 24, 'embed_dim': 4096, 'num_heads': 64, 'mlp_dim': 10240},
}


def get_config(variant: str = ''):
  """Returns the config of a variant."""
  config = presets.create(
    't5',
    SIZES,
    variant,
    'span_corruption',
    family='encoder_decoder',
    start_token=0,
    vocab_size=32128,
    head_dim=64,
    positions='t5',
    norm_epsilon=1e-06,
    activation='relu',
    gated_mlp=False,
    attention={'scale': 1.0, 'dropout_rate': 0.1},
    dropout_rate=0.1,
  )
  config.model.logit_scale = config.model.embed_dim**-0.5 if config.model.tie_embeddings else 1.0
  return config
