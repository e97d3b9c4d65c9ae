"""Arithmetic of a training step, counted from the config alone."""

from collections.abc import Sequence


def head_flops_per_token(model_config) -> float:
  """FLOPs of forward and backward for a token in the head: 6 a matmul weight (Chowdhery et al. 2022, appendix B)."""
  transform = model_config.embed_dim**2 if model_config.head_transform else 0
  return 6 * (model_config.vocab_size * model_config.embed_dim + transform)


def tower_flops_per_token(model_config, sequence_length: int, windows: Sequence[int], crosses: bool = False) -> float:
  """FLOPs of forward and backward for a token in a stack: 6 a matmul weight plus 12 H Q T for each attention.

  This is the count of Chowdhery et al. 2022 (PaLM), appendix B: attention is counted in full, causal or not,
  recomputation is not counted, and neither are embedding look-ups.

  Args:
    model_config: with the sizes of the stack.
    sequence_length: tokens that a token attends to, in its own stack and in the other.
    windows: tokens that each layer attends to; 0 = all.
    crosses: whether its layers attend to another stack too.
  """
  heads = model_config.num_heads * model_config.head_dim
  groups = model_config.num_kv_heads * model_config.head_dim
  projections = model_config.embed_dim * (2 * heads + 2 * groups)
  mlp = model_config.embed_dim * model_config.mlp_dim * (3 if model_config.gated_mlp else 2)
  attended = [min(window or sequence_length, sequence_length) for window in windows]
  if crosses:
    projections, attended = 2 * projections, attended + [sequence_length] * len(windows)
  return 6 * model_config.num_layers * (projections + mlp) + 12 * heads * sum(attended)
