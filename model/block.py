"""A transformer block: attention and feed-forward, each on a residual branch. L length, D embed."""

import jax
from jax.ad_checkpoint import checkpoint_name

from model import attention, feed_forward, latent, layers, moe
from model.pattern import BlockSpec
from parallel import axes as ax

NORM_POSITIONS = ('pre', 'post', 'sandwich')
# The stream between branches, and what a branch reads: the same but where the length is split further between them.
_RESIDUAL, _READ = (ax.BATCH, ax.RESIDUAL_LENGTH, ax.EMBED), (ax.BATCH, ax.LENGTH, ax.EMBED)


class Block(layers.Module):
  """x + f(norm(x)) for pre-norm (Xiong et al. 2020), norm(x + f(x)) for post-norm (Vaswani et al. 2017), x + norm(f(
  norm(x))) for sandwich norms (Ding et al. 2021); f is attention, then cross-attention in a decoder that reads another
  stack, then the feed-forward. Parallel blocks add attention and feed-forward of the same x (Black et al. 2022)."""

  def __init__(self, scope, model_config, spec: BlockSpec, *, rngs):
    self.scope = scope
    self.norm_position, self.parallel = model_config.norm_position, model_config.parallel_blocks
    self.dropout_rate = model_config.dropout_rate

    def norms(name):
      after = layers.norm(f'{name}_post_norm', model_config) if self.norm_position == 'sandwich' else None
      return layers.norm(f'{name}_norm', model_config), after

    self.attention_norm, self.attention_post_norm = norms('attention') if spec.attention_norm else (None, None)
    if model_config.attention.latent.key_value_rank:
      self.attention = latent.LatentAttention('attention', model_config, spec.window, rngs=rngs)
    else:
      self.attention = attention.Attention('attention', model_config, spec.window, model_config.positions, rngs=rngs)
    if spec.cross:
      self.cross_attention_norm, self.cross_attention_post_norm = norms('cross_attention')
      self.cross_attention = attention.Attention('cross_attention', model_config, rngs=rngs)
    else:
      self.cross_attention = None
    self.mlp_norm, self.mlp_post_norm = norms('mlp')
    self.has_experts = spec.experts
    self.mlp = (moe.MoE if spec.experts else feed_forward.FeedForward)('mlp', model_config, rngs=rngs)

  def __call__(self, x_BxLxD, context, key, cache):
    """Returns the residual stream [B, L, D], the layer's cache and its metrics. `key` None: no dropout."""
    crosses, metrics = self.cross_attention is not None, {}
    keys = (None,) * 5 if key is None else jax.random.split(key, 5 if crosses else 3)
    own_cache, cross_cache = cache if crosses and cache is not None else (cache, None)

    def attend(x):
      nonlocal own_cache
      seen = x if context.targets is None else x[:, : context.keys.segment_ids.shape[1]]
      y, own_cache = self.attention(x, seen, context, keys[0], own_cache)
      return y

    def attend_across(x):
      nonlocal cross_cache
      y, cross_cache = self.cross_attention(x, context.memory, context.cross, keys[3], cross_cache)
      return y

    def feed(x):
      nonlocal metrics
      if not self.has_experts:
        return self.mlp(x)
      y, metrics = self.mlp(x, context, None if key is None else jax.random.fold_in(key, 0))
      return y

    if self.parallel:
      attended = self._branch(x_BxLxD, self.attention_norm, attend, None, keys[1])
      x = x_BxLxD + attended + self._branch(x_BxLxD, self.mlp_norm, feed, None, keys[2])
      x = checkpoint_name(x, 'residual')
    else:
      x = self._residual(x_BxLxD, self.attention_norm, attend, self.attention_post_norm, keys[1])
      if crosses:
        x = self._residual(x, self.cross_attention_norm, attend_across, self.cross_attention_post_norm, keys[4])
      x = self._residual(x, self.mlp_norm, feed, self.mlp_post_norm, keys[2])
    cache = (own_cache, cross_cache) if crosses and cache is not None else own_cache
    return ax.constrain(x, _RESIDUAL), cache, metrics

  def _residual(self, x, norm, branch, post_norm, key):
    if self.norm_position == 'post':
      x = x + self._branch(x, None, branch, None, key)
      return checkpoint_name(x if norm is None else norm(x), 'residual')
    return checkpoint_name(x + self._branch(x, norm, branch, post_norm, key), 'residual')

  def _branch(self, x, norm, branch, post_norm, key):
    y = branch(ax.constrain(x if norm is None else norm(x), _READ))
    y = ax.constrain(y, _RESIDUAL)
    return layers.dropout(y if post_norm is None else post_norm(y), self.dropout_rate, key)
