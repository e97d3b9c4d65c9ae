"""A transformer block: attention and feed-forward, each on a residual branch. L length, D embed."""

import dataclasses
import math

import jax
from jax.ad_checkpoint import checkpoint_name

from model import attention, feed_forward, layers, moe
from model.stack import Segment
from parallel import axes as ax

NORM_POSITIONS = ('pre', 'post', 'sandwich')
ATTENTION_KINDS = ('global', 'local')


@dataclasses.dataclass(frozen=True)
class BlockSpec:
  """In what blocks of one stack may differ.

  Attributes:
    window: tokens that a token sees, itself included, to either side; 0 = all.
    attention_norm: whether the attention's branch has norms.
    cross: whether a branch of cross-attention stands between the others.
    experts: whether the feed-forward is a mixture of experts.
  """

  window: int = 0
  attention_norm: bool = True
  cross: bool = False
  experts: bool = False


def segments(model_config, cross: bool = False) -> tuple[Segment, ...]:
  """The stack of a config: the layers that stand before the pattern, the pattern of blocks as often as it fits, and
  what is left of it.

  Args:
    model_config: resolved.
    cross: whether its blocks have cross-attention.

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

  def spec(layer):
    is_local = pattern[layer % len(pattern)] == 'local'
    has_norm = layer > 0 or model_config.first_norm
    return BlockSpec(window if is_local else 0, has_norm, cross, has_experts[layer])

  specs = tuple(map(spec, range(model_config.num_layers)))
  dense, every = (model_config.moe.first_dense, model_config.moe.every) if any(has_experts) else (0, 1)
  before, period = max(dense, int(not model_config.first_norm)), math.lcm(len(pattern), every)
  repeats = (len(specs) - before) // period
  rest = before + repeats * period
  parts = [Segment(specs[:before], 1), Segment(specs[before : before + period], repeats), Segment(specs[rest:], 1)]
  return tuple(part.reduced() for part in parts if part.num_layers)


def _expert_layers(model_config) -> list[bool]:
  """Which layers have experts: behind the first dense ones number `place` of each run of `every`."""
  moe_config = model_config.moe
  first, every, place = moe_config.first_dense, moe_config.every, moe_config.place or moe_config.every
  exist = moe_config.num_experts > 0
  return [exist and i >= first and (i - first + 1 - place) % every == 0 for i in range(model_config.num_layers)]


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
    return ax.constrain(x, (ax.BATCH, ax.LENGTH, ax.EMBED)), cache, metrics

  def _residual(self, x, norm, branch, post_norm, key):
    if self.norm_position == 'post':
      x = x + self._branch(x, None, branch, None, key)
      return checkpoint_name(x if norm is None else norm(x), 'residual')
    return checkpoint_name(x + self._branch(x, norm, branch, post_norm, key), 'residual')

  def _branch(self, x, norm, branch, post_norm, key):
    y = branch(x if norm is None else norm(x))
    return layers.dropout(y if post_norm is None else post_norm(y), self.dropout_rate, key)
