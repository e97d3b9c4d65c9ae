"""Arithmetic of a training step, counted from the config alone."""

from collections.abc import Sequence


def head_flops_per_token(model_config) -> float:
  """FLOPs of forward and backward for a token in the head: 6 a matmul weight (Chowdhery et al. 2022, appendix B)."""
  transform = model_config.embed_dim**2 if model_config.head_transform else 0
  return 6 * (model_config.vocab_size * model_config.embed_dim + transform)


def tower_flops_per_token(
  model_config, sequence_length: int, windows: Sequence[int], expert_layers: int = 0, crosses: bool = False
) -> float:
  """FLOPs of forward and backward for a token in a stack: 6 a matmul weight plus 12 H Q T for each attention.

  This is the count of Chowdhery et al. 2022 (PaLM), appendix B: attention is counted in full, causal or not,
  recomputation is not counted, and neither are embedding look-ups.

  Args:
    model_config: with the sizes of the stack.
    sequence_length: tokens that a token attends to, in its own stack and in the other.
    windows: tokens that each layer attends to; 0 = all.
    expert_layers: layers with experts, of which those weights count that a token passes.
    crosses: whether its layers attend to another stack too.
  """
  latent_config, head_dim = model_config.attention.latent, model_config.head_dim
  heads = model_config.num_heads * (head_dim + (latent_config.value_dim or head_dim)) / 2
  projections = _projections(model_config)
  moe_config, matrices = model_config.moe, 3 if model_config.gated_mlp else 2
  passed = moe_config.experts_per_token * moe_config.mlp_dim + moe_config.shared_mlp_dim
  width = (model_config.num_layers - expert_layers) * model_config.mlp_dim + expert_layers * passed
  mlp = model_config.embed_dim * (matrices * width + expert_layers * moe_config.num_experts)
  attended = [min(window or sequence_length, sequence_length) for window in windows]
  if crosses:
    projections, attended = 2 * projections, attended + [sequence_length] * len(windows)
  return 6 * (model_config.num_layers * projections + mlp) + 12 * heads * sum(attended)


def _projections(model_config) -> int:
  """Weights of the projections of one attention."""
  embed, heads = model_config.embed_dim, model_config.num_heads
  latent_config, head_dim = model_config.attention.latent, model_config.head_dim
  if not latent_config.key_value_rank:
    return embed * head_dim * (2 * heads + 2 * model_config.num_kv_heads)
  rank, rotary_dim, value_dim = latent_config.query_rank, latent_config.rotary_dim, latent_config.value_dim or head_dim
  queries = rank * (embed + heads * head_dim) if rank else embed * heads * head_dim
  narrow = embed * (latent_config.key_value_rank + rotary_dim)
  keys_and_values = latent_config.key_value_rank * heads * (head_dim - rotary_dim + value_dim)
  return queries + narrow + keys_and_values + heads * value_dim * embed
