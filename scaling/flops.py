"""Arithmetic of a training step, counted from the model config alone.

Products of matrices count, 2 FLOPs a multiplication and addition, as in Chowdhery et al. 2022 (PaLM), appendix B:
attention in full, causal or not; recomputation, look-ups, norms and the like not at all. The backward pass has two
products for each of the forward pass.
"""

import dataclasses
from collections.abc import Sequence

SECONDS_PER_DAY = 86_400


@dataclasses.dataclass(frozen=True)
class Work:
  """FLOPs of a forward pass, in two kinds that recomputation and masks treat unlike.

  Attributes:
    weights: products with parameters.
    attention: products of queries with keys, and of probabilities with values, every pair counted.
  """

  weights: float = 0.0
  attention: float = 0.0

  def __add__(self, other: 'Work') -> 'Work':
    return Work(self.weights + other.weights, self.attention + other.attention)

  def __mul__(self, factor: float) -> 'Work':
    return Work(self.weights * factor, self.attention * factor)

  @property
  def training(self) -> float:
    """FLOPs of forward and backward together."""
    return 3 * (self.weights + self.attention)


def head_work(model_config, targets: float = 1) -> Work:
  """The forward pass of the head for so many targets."""
  transform = model_config.embed_dim**2 if model_config.head_transform else 0
  return Work(2 * (model_config.vocab_size * model_config.embed_dim + transform) * targets)


def tower_work(
  model_config,
  length: int,
  windows: Sequence[int],
  expert_layers: int = 0,
  source_length: int = 0,
  targets: int = 0,
  rows: int = 1,
) -> Work:
  """The forward pass of a stack.

  Args:
    model_config: resolved, with the sizes of the stack.
    length: tokens of a row.
    windows: tokens that each layer attends to; 0 = all.
    expert_layers: layers with experts, of which those weights count that a token passes.
    source_length: tokens of another stack that each layer attends to as well; 0 = none.
    targets: places of a second stream of queries (Yang et al. 2019), which the keys do not see.
    rows: of the batch.
  """
  layers, queries = model_config.num_layers, length + targets
  latent_config, head_dim = model_config.attention.latent, model_config.head_dim
  of_queries, of_keys = _projections(model_config)
  moe_config, matrices = model_config.moe, 3 if model_config.gated_mlp else 2
  passed = moe_config.experts_per_token * moe_config.mlp_dim + moe_config.shared_mlp_dim
  width = (layers - expert_layers) * model_config.mlp_dim + expert_layers * passed
  mlp = model_config.embed_dim * (matrices * width + expert_layers * moe_config.num_experts)
  weights = layers * (of_queries * queries + of_keys * length) + mlp * queries
  scores, values = head_dim, latent_config.value_dim or head_dim
  attended = sum(min(window or length, length) for window in windows)
  pairs = queries * attended * (scores + values)
  if source_length:
    weights += layers * (of_queries * length + of_keys * source_length)
    pairs += length * source_length * layers * (scores + values)
  distances, shared = 2 * length - 1, 0
  if model_config.positions == 'xlnet':  # every distance is a key too, the same for all rows
    shared = layers * distances * model_config.embed_dim * model_config.num_heads * head_dim
    pairs += queries * distances * layers * head_dim
  if model_config.positions == 'shaw':
    pairs += queries * distances * layers * (scores + values)
  return Work(2 * (weights * rows + shared), 2 * model_config.num_heads * pairs * rows)


def _projections(model_config) -> tuple[int, int]:
  """Weights of one attention that a query passes, the output's among them, and those that a key passes."""
  embed, heads = model_config.embed_dim, model_config.num_heads
  latent_config, head_dim = model_config.attention.latent, model_config.head_dim
  if not latent_config.key_value_rank:
    return 2 * embed * head_dim * heads, 2 * embed * head_dim * model_config.num_kv_heads
  rank, rotary_dim, value_dim = latent_config.query_rank, latent_config.rotary_dim, latent_config.value_dim or head_dim
  queries = rank * (embed + heads * head_dim) if rank else embed * heads * head_dim
  narrow = embed * (latent_config.key_value_rank + rotary_dim)
  keys_and_values = latent_config.key_value_rank * heads * (head_dim - rotary_dim + value_dim)
  return queries + heads * value_dim * embed, narrow + keys_and_values


def six_nd(params: float, tokens: float) -> float:
  """FLOPs of training by the rule of Kaplan et al. 2020, section 2.1: 6 a parameter and token.

  Args:
    params: that a token passes; with experts the active ones.
    tokens: trained on.
  """
  return 6.0 * params * tokens


def petaflops_days(flops: float) -> float:
  """FLOPs in days of 10^15 FLOP/s, the unit of Brown et al. 2020, table D.1."""
  return flops / (1e15 * SECONDS_PER_DAY)
