"""A transformer block: attention and feed-forward, each on a residual branch. L length, D embed."""

import dataclasses
import math

import jax
from jax.ad_checkpoint import checkpoint_name

from model import attention, feed_forward, layers, moe
from model.stack import Segment
from parallel import axes as ax

NORM_POSITIONS = ('pre', 'post')
ATTENTION_KINDS = ('global', 'local')


@dataclasses.dataclass(frozen=True)
class BlockSpec:
  """In what blocks of one stack may differ.

  Attributes:
    window: tokens that a token sees, itself included; 0 = all.
    experts: whether the feed-forward is a mixture of experts.
  """

  window: int = 0
  experts: bool = False


def segments(model_config) -> tuple[Segment, ...]:
  """The stack of a config: its pattern of blocks as often as it fits, and what is left of it.

  Raises:
    ValueError: the pattern names what does not exist, or does not agree with the window.
  """
  window, pattern = model_config.attention.window, tuple(model_config.attention.pattern)
  if not pattern:
    raise ValueError(
      f'model.attention.pattern={pattern} must name one or more of {", ".join(ATTENTION_KINDS)}, '
      "such as ('local', 'global')"
    )
  if (window > 0) != ('local' in pattern):
    raise ValueError(
      f'model.attention.window={window} and model.attention.pattern={pattern} do not agree: give local '
      "layers a window of at least 1, or use model.attention.pattern=('global',) with window 0"
    )
  has_experts = _expert_layers(model_config)
  specs = tuple(
    BlockSpec(window if pattern[i % len(pattern)] == 'local' else 0, has_experts[i])
    for i in range(model_config.num_layers)
  )
  dense = model_config.moe.first_dense if any(has_experts) else 0
  period = math.lcm(len(pattern), model_config.moe.every if any(has_experts) else 1)
  rest = len(specs) - (len(specs) - dense) % period
  parts = [
    Segment(specs[:dense], 1),
    Segment(specs[dense : dense + period], (rest - dense) // period),
    Segment(specs[rest:], 1),
  ]
  return tuple(part.reduced() for part in parts if part.num_layers)


def _expert_layers(model_config) -> list[bool]:
  """Which layers have experts: behind the first dense ones the last of each run of `every`."""
  first, every = model_config.moe.first_dense, model_config.moe.every
  exist = model_config.moe.num_experts > 0
  return [exist and i >= first and (i - first + 1) % every == 0 for i in range(model_config.num_layers)]


class Block(layers.Module):
  """x + f(norm(x)) for pre-norm (Xiong et al. 2020), norm(x + f(x)) for post-norm (Vaswani et al. 2017)."""

  def __init__(self, scope, model_config, spec: BlockSpec, *, rngs):
    self.scope = scope
    self.pre_norm = model_config.norm_position == 'pre'
    self.dropout_rate = model_config.dropout_rate
    self.attention_norm = layers.norm('attention_norm', model_config)
    self.attention = attention.Attention('attention', model_config, spec.window, rngs=rngs)
    self.mlp_norm = layers.norm('mlp_norm', model_config)
    self.has_experts = spec.experts
    self.mlp = (moe.MoE if spec.experts else feed_forward.FeedForward)('mlp', model_config, rngs=rngs)

  def __call__(self, x_BxLxD, context, key, cache):
    """Returns the residual stream [B, L, D], the layer's cache and its metrics. `key` None: no dropout."""
    metrics = {}
    keys = (None,) * 3 if key is None else jax.random.split(key, 3)

    def attend(x):
      nonlocal cache
      y, cache = self.attention(x, x, context, keys[0], cache)
      return y

    def feed(x):
      nonlocal metrics
      if not self.has_experts:
        return self.mlp(x)
      y, metrics = self.mlp(x, context, None if key is None else jax.random.fold_in(key, 0))
      return y

    x = self._residual(x_BxLxD, self.attention_norm, attend, keys[1])
    x = self._residual(x, self.mlp_norm, feed, keys[2])
    return ax.constrain(x, (ax.BATCH, ax.LENGTH, ax.EMBED)), cache, metrics

  def _residual(self, x, norm, branch, key):
    if self.pre_norm:
      x = x + layers.dropout(branch(norm(x)), self.dropout_rate, key)
    else:
      x = norm(x + layers.dropout(branch(x), self.dropout_rate, key))
    return checkpoint_name(x, 'residual')
