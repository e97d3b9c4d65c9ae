"""A transformer block: attention and feed-forward, each on a residual branch. L length, D embed."""

import dataclasses

import jax
from jax.ad_checkpoint import checkpoint_name

from model import attention, feed_forward, layers
from model.stack import Segment
from parallel import axes as ax

NORM_POSITIONS = ('pre', 'post')
ATTENTION_KINDS = ('global', 'local')


@dataclasses.dataclass(frozen=True)
class BlockSpec:
  """In what blocks of one stack may differ.

  Attributes:
    window: tokens that a token sees, itself included; 0 = all.
  """

  window: int = 0


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
  specs = tuple(BlockSpec(window if kind == 'local' else 0) for kind in pattern)
  repeats, rest = divmod(model_config.num_layers, len(specs))
  parts = [Segment(specs, repeats), Segment(specs[:rest], 1)]
  return tuple(part.reduced() for part in parts if part.num_layers)


class Block(layers.Module):
  """x + f(norm(x)) for pre-norm (Xiong et al. 2020), norm(x + f(x)) for post-norm (Vaswani et al. 2017)."""

  def __init__(self, scope, model_config, spec: BlockSpec, *, rngs):
    self.scope = scope
    self.pre_norm = model_config.norm_position == 'pre'
    self.dropout_rate = model_config.dropout_rate
    self.attention_norm = layers.norm('attention_norm', model_config)
    self.attention = attention.Attention('attention', model_config, spec.window, rngs=rngs)
    self.mlp_norm = layers.norm('mlp_norm', model_config)
    self.mlp = feed_forward.FeedForward('mlp', model_config, rngs=rngs)

  def __call__(self, x_BxLxD, context, key, cache):
    """Returns the residual stream [B, L, D], the layer's cache and its metrics. `key` None: no dropout."""
    keys = (None,) * 3 if key is None else jax.random.split(key, 3)

    def attend(x):
      nonlocal cache
      y, cache = self.attention(x, x, context, keys[0], cache)
      return y

    x = self._residual(x_BxLxD, self.attention_norm, attend, keys[1])
    x = self._residual(x, self.mlp_norm, self.mlp, keys[2])
    return ax.constrain(x, (ax.BATCH, ax.LENGTH, ax.EMBED)), cache, {}

  def _residual(self, x, norm, branch, key):
    if self.pre_norm:
      x = x + layers.dropout(branch(norm(x)), self.dropout_rate, key)
    else:
      x = norm(x + layers.dropout(branch(x), self.dropout_rate, key))
    return checkpoint_name(x, 'residual')
