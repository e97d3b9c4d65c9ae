"""Arithmetic of a training step, counted from the config alone."""

from collections.abc import Sequence


def decoder_flops_per_token(model_config, sequence_length: int, windows: Sequence[int]) -> float:
  """FLOPs a token of forward and backward: 6 a matmul weight plus 12 H Q T for the attention of each layer.

  This is the count of Chowdhery et al. 2022 (PaLM), appendix B: attention is counted in full, causal or not,
  recomputation is not counted, and neither are embedding look-ups. A layer with a window (`windows`, one a layer, 0 =
  none) attends to that many tokens.
  """
  heads = model_config.num_heads * model_config.head_dim
  groups = model_config.num_kv_heads * model_config.head_dim
  projections = model_config.embed_dim * (2 * heads + 2 * groups)
  mlp = model_config.embed_dim * model_config.mlp_dim * (3 if model_config.gated_mlp else 2)
  weights = model_config.num_layers * (projections + mlp) + model_config.vocab_size * model_config.embed_dim
  attended = sum(min(window or sequence_length, sequence_length) for window in windows)
  return 6 * weights + 12 * heads * attended
