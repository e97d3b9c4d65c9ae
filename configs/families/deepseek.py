"""DeepSeek-V3 (DeepSeek-AI 2024, section 4.2), and Moonlight (Liu et al. 2025) of the same architecture."""

from configs import presets

LARGE = {'num_experts': 256, 'mlp_dim': 2048, 'shared_mlp_dim': 2048, 'first_dense': 3, 'routed_scale': 2.5}
GROUPS = {'experts_per_token': 8, 'num_groups': 8, 'groups_per_token': 4}
SMALL = {'num_experts': 64, 'mlp_dim': 1408, 'shared_mlp_dim': 2816, 'first_dense': 1, 'routed_scale': 2.446}
YARN = {'scaling': 'yarn', 'factor': 40.0, 'original_length': 4096, 'mscale': 1.0, 'mscale_all_dim': 1.0}
SIZES = {
  'v3': {'num_layers': 61, 'embed_dim': 7168, 'num_heads': 128, 'mlp_dim': 18432, 'vocab_size': 129280}
  | {'norm_epsilon': 1e-06, 'attention.latent.query_rank': 1536, 'moe': LARGE | GROUPS, 'rope': YARN}
  | {'attention.scale': 0.1352337788608801},  # 1/sqrt(192) (0.1 ln 40 + 1)^2, of YaRN
  'moonlight-16b': {'num_layers': 27, 'embed_dim': 2048, 'num_heads': 16, 'mlp_dim': 11264, 'vocab_size': 163840}
  | {'rope.theta': 50000.0, 'moe': SMALL | {'experts_per_token': 6}},
}


def get_config(variant: str = ''):
  """Returns the config of a variant."""
  return presets.create(
    'deepseek',
    SIZES,
    variant,
    head_dim=192,
    tie_embeddings=False,
    rope={'interleaved': True},
    attention={'latent': {'key_value_rank': 512, 'rotary_dim': 64, 'value_dim': 128}},
    moe={'router': 'sigmoid', 'selection_bias': True, 'normalize': True, 'balance_loss': 0.0001},
  )
