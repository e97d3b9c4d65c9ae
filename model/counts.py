"""Arithmetic of a training step, counted from the config alone."""

from collections.abc import Sequence


def decoder_flops_per_token(
  model_config, sequence_length: int, windows: Sequence[int], expert_layers: int = 0
) -> float:
  """FLOPs a token of forward and backward: 6 a matmul weight plus 12 H Q T for the attention of each layer.

  This is the count of Chowdhery et al. 2022 (PaLM), appendix B: attention is counted in full, causal or not,
  recomputation is not counted, and neither are embedding look-ups. A layer with a window (`windows`, one a layer, 0 =
  none) attends to that many tokens. Of a layer with experts (`expert_layers` of them) those weights count that a token
  passes.
  """
  heads = model_config.num_heads * model_config.head_dim
  groups = model_config.num_kv_heads * model_config.head_dim
  projections = model_config.embed_dim * (2 * heads + 2 * groups)
  moe_config, matrices = model_config.moe, 3 if model_config.gated_mlp else 2
  passed = moe_config.experts_per_token * moe_config.mlp_dim + moe_config.shared_mlp_dim
  width = (model_config.num_layers - expert_layers) * model_config.mlp_dim + expert_layers * passed
  mlp = model_config.embed_dim * (matrices * width + expert_layers * moe_config.num_experts)
  weights = model_config.num_layers * projections + mlp + model_config.vocab_size * model_config.embed_dim
  attended = sum(min(window or sequence_length, sequence_length) for window in windows)
  return 6 * weights + 12 * heads * attended
