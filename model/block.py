"""A transformer block: attention and feed-forward, each on a residual branch. L length, D embed."""

import jax
from jax.ad_checkpoint import checkpoint_name

from model import attention, feed_forward, layers
from parallel import axes as ax

NORM_POSITIONS = ('pre', 'post')


class Block(layers.Module):
  """x + f(norm(x)) for pre-norm (Xiong et al. 2020), norm(x + f(x)) for post-norm (Vaswani et al. 2017)."""

  def __init__(self, scope, model_config, *, rngs):
    self.scope = scope
    self.pre_norm = model_config.norm_position == 'pre'
    self.dropout_rate = model_config.dropout_rate
    self.attention_norm = layers.norm('attention_norm', model_config)
    self.attention = attention.SelfAttention('attention', model_config, rngs=rngs)
    self.mlp_norm = layers.norm('mlp_norm', model_config)
    self.mlp = feed_forward.FeedForward('mlp', model_config, rngs=rngs)

  def __call__(self, x_BxLxD, context, key, cache):
    """Returns the residual stream [B, L, D] and the layer's cache. `key` None: no dropout."""
    keys = (None,) * 3 if key is None else jax.random.split(key, 3)

    def attend(x):
      nonlocal cache
      y, cache = self.attention(x, context, keys[0], cache)
      return y

    x = self._residual(x_BxLxD, self.attention_norm, attend, keys[1])
    x = self._residual(x, self.mlp_norm, self.mlp, keys[2])
    return ax.constrain(x, (ax.BATCH, ax.LENGTH, ax.EMBED)), cache

  def _residual(self, x, norm, branch, key):
    if self.pre_norm:
      return checkpoint_name(x + layers.dropout(branch(norm(x)), self.dropout_rate, key), 'residual')
    return norm(x + layers.dropout(branch(x), self.dropout_rate, key))
