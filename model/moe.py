"""Mixture of experts: many feed-forwards, of which each token passes a few.

Shapes in names: B rows, L length, T = B L tokens, D embed, F mlp, E experts, C rows of an expert, S rows of
all experts.
"""

import functools
import logging
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from model import dispatch, feed_forward, layers
from model.metrics import Metric
from model.routing import Router
from model.stream import Visibility
from pallas_kernels import grouped_matmul
from pallas_kernels.device import current
from parallel import axes as ax

EXCHANGES = ('ragged', 'gather')
_LOGGER = logging.getLogger(__name__)


class MoE(layers.Module):
  """The feed-forward branch of a layer with experts: sum of gate * expert(x) over the chosen ones, plus shared(x).

  Tokens are sorted by expert; then each expert multiplies its own rows only. Without a capacity no token is dropped and
  the rows are multiplied group by group; with one, or where experts choose, every expert has equally many rows, in part
  perhaps empty. Over a mesh each device sorts its own tokens, and where devices hold different experts the tokens
  travel to theirs and back.
  """

  def __init__(self, scope, model_config, *, rngs):
    self.scope = scope
    moe_config = model_config.moe
    self.num_experts, self.k = moe_config.num_experts, moe_config.experts_per_token
    self.expert_choice = moe_config.router == 'expert_choice'
    self.capacity_factor, self.expert_capacity = moe_config.capacity_factor, moe_config.expert_capacity
    self.is_limited = self.expert_choice or bool(self.capacity_factor or self.expert_capacity)
    self.exchange = moe_config.exchange
    self.router = Router('router', model_config, rngs=rngs)
    self.experts = Experts('experts', model_config, rngs=rngs)
    shared = moe_config.shared_mlp_dim
    self.shared = feed_forward.FeedForward('shared', model_config, shared, rngs=rngs) if shared else None

  def __call__(self, x_BxLxD, context, key):
    """Returns the branch's output [B, L, D] and its metrics.

    Args:
      x_BxLxD: what to read.
      context: `Context` of the call; tokens of segment 0 are padding, which passes no routed expert.
      key: PRNG key for the router's jitter, or None.

    Raises:
      ValueError: experts are to choose tokens where a token must not know later ones.
    """
    if self.expert_choice and context.visibility is not Visibility.BIDIRECTIONAL:
      raise ValueError(
        "model.moe.router='expert_choice' lets what comes later decide on a token's experts, which visibility "
        f"{context.visibility.value!r} forbids; use it in an encoder, or model.moe.router='softmax'"
      )
    real_BxL = context.queries.segment_ids != 0
    gates, chosen, metrics = self.router(x_BxLxD, real_BxL, key)
    y = self._pass_experts(x_BxLxD, gates, chosen)
    if self.shared is not None:
      y = y + self.shared(x_BxLxD)
    return y, metrics | {'moe/dropped_share': self._dropped(chosen, real_BxL)}

  def _pass_experts(self, x_BxLxD, gates, chosen):
    graph, params = nnx.split(self.experts)
    params_axes = jax.tree.map(lambda param: ax.Used(param.axes), params, is_leaf=lambda x: isinstance(x, nnx.Param))
    stream = (ax.BATCH, ax.LENGTH, ax.EMBED)
    # Places in a row of text are limited, or found, by what the whole row chooses.
    of_token, of_row = (ax.BATCH, ax.LENGTH, None), (ax.BATCH, None, None)
    in_axes = (stream, of_row if self.expert_choice else of_token, of_row if self.is_limited else of_token)

    def on_device(x_BxLxD, gates, chosen, params):
      experts = nnx.merge(graph, params)
      pass_on = self._pass_equally if self.is_limited else self._pass_all
      return ax.sum_over(ax.MLP, pass_on(experts, x_BxLxD, gates, chosen).reshape(x_BxLxD.shape))

    return ax.on_each_device(on_device, (*in_axes, params_axes), stream)(x_BxLxD, gates, chosen, params)

  def _pass_equally(self, experts, x_BxLxD, gates, chosen):
    """[T, D] of tokens of which every expert has as many from every row of text."""
    batch, length, embed = x_BxLxD.shape
    pass_experts = functools.partial(ax.pass_equal, ax.EXPERTS, lambda rows: experts(rows, None))
    if self.expert_choice:
      routes = dispatch.by_expert(chosen - ax.offset(ax.LENGTH, length), length)
      rows = pass_experts(routes.spread(x_BxLxD.reshape(-1, embed)), self.num_experts)
      return routes.collect(rows, gates.swapaxes(0, 1).reshape(-1), batch * length)
    capacity = self._capacity(chosen.shape[1])
    if length < chosen.shape[1]:
      within = dispatch.within_capacity(chosen, self.num_experts, capacity)
      chosen = jax.lax.dynamic_slice_in_dim(within, ax.offset(ax.LENGTH, length), length, axis=1)
    routes = dispatch.with_capacity(chosen, self.num_experts, min(capacity, length))
    rows = pass_experts(routes.spread(x_BxLxD.reshape(-1, embed)), self.num_experts)
    return routes.collect(rows, gates.reshape(-1, self.k))

  def _pass_all(self, experts, x_BxLxD, gates, chosen):
    """[T, D] of tokens all of whose choices count."""
    tokens = x_BxLxD.reshape(-1, x_BxLxD.shape[2]), gates.reshape(-1, self.k), chosen.reshape(-1, self.k)
    num_local = len(experts.up.kernel[...])
    if num_local < self.num_experts and _exchange(self.exchange) == 'ragged':
      x_TxD, gates, chosen = tokens
      routes = dispatch.dropless(chosen, self.num_experts)
      most_sent = len(x_TxD) * min(self.k, num_local)
      rows = ax.pass_ragged(ax.EXPERTS, experts, routes.spread(x_TxD), routes.sizes_E, most_sent)
      return routes.collect(rows, gates)

    def of_mine(x_TxD, gates, chosen):
      mine = chosen - ax.offset(ax.EXPERTS, num_local)
      routes = dispatch.dropless(jnp.where((mine >= 0) & (mine < num_local), mine, num_local), num_local)
      return routes.collect(experts(routes.spread(x_TxD), routes.sizes_E), gates)

    return ax.pass_gathered(ax.EXPERTS, of_mine, tokens)

  def _capacity(self, length) -> int | None:
    """Choices that an expert takes of a row of `length` tokens, or None: all."""
    if self.expert_capacity:
      return min(self.expert_capacity, length)
    if self.capacity_factor:
      return min(math.ceil(self.capacity_factor * self.k * length / self.num_experts), length)
    return None

  def _dropped(self, chosen, real_BxL):
    """The share of choices without a place; where experts choose, of tokens that no expert chose."""
    num_tokens = jnp.sum(real_BxL, dtype=jnp.float32)
    if self.expert_choice:
      is_chosen_BxL = jnp.any(chosen.reshape(len(chosen), -1, 1) == jnp.arange(real_BxL.shape[1]), axis=1)
      return Metric(jnp.sum(real_BxL & ~is_chosen_BxL, dtype=jnp.float32), num_tokens)
    capacity = self._capacity(chosen.shape[1])
    if capacity is None:
      return Metric(jnp.zeros(()), self.k * num_tokens)
    count_BxE = jnp.sum(chosen[..., None] == jnp.arange(self.num_experts), axis=(1, 2), dtype=jnp.float32)
    return Metric(jnp.sum(jnp.maximum(count_BxE - capacity, 0.0)), self.k * num_tokens)


def _exchange(name: str) -> str:
  """How rows of any number travel to the devices of their experts."""
  platform = current().platform
  if name == 'ragged' and platform == 'cpu':
    raise ValueError(
      "model.moe.exchange='ragged' needs a ragged all-to-all, which XLA does not have on CPUs; use 'gather' or 'auto', "
      'or a capacity: --config.model.moe.capacity_factor=1.25'
    )
  if name == 'auto':
    name = 'gather' if platform == 'cpu' else 'ragged'
    _log_exchange(name, platform)
  return name


@functools.cache
def _log_exchange(name, platform):
  why = 'XLA has no ragged all-to-all there' if name == 'gather' else 'only the rows that there are travel'
  _LOGGER.info("model.moe.exchange='auto' uses %r on %s: %s", name, platform, why)


class Experts(layers.Module):
  """Feed-forwards side by side, see `feed_forward.FeedForward`; on devices that split their width, parts of the sum."""

  def __init__(self, scope, model_config, *, rngs):
    self.scope = scope
    self.activation = model_config.activation
    embed, mlp = (model_config.embed_dim, ax.EMBED), (model_config.moe.mlp_dim, ax.MLP)
    self.up = ExpertLinear('up', model_config, embed, mlp, rngs=rngs)
    self.gate = ExpertLinear('gate', model_config, embed, mlp, rngs=rngs) if model_config.gated_mlp else None
    self.down = ExpertLinear('down', model_config, mlp, embed, rngs=rngs, residual=True)

  def __call__(self, x_SxD, sizes_E):
    """Rows sorted by expert, as many as `sizes_E` says, or all equally many for None."""
    up = self.up(x_SxD, sizes_E)
    gate = None if self.gate is None else self.gate(x_SxD, sizes_E)
    return self.down(feed_forward.activate(self.activation, up, gate), sizes_E)


class ExpertLinear(layers.Module):
  """y = x W_e (+ b_e) for the rows of each expert."""

  def __init__(self, scope, model_config, inputs, outputs, *, rngs, residual=False):
    self.scope = scope
    self.implementation = model_config.moe.implementation
    (fan_in, self.in_axis), (fan_out, out_axis) = inputs, outputs
    experts = model_config.moe.num_experts
    init = layers.initializer(model_config, fan_in, fan_out, residual)
    self.kernel = nnx.Param(init(rngs.params(), (experts, fan_in, fan_out)), axes=(ax.EXPERTS, self.in_axis, out_axis))
    bias = nnx.Param(jnp.zeros((experts, fan_out)), axes=(ax.EXPERTS, out_axis)) if model_config.use_bias else None
    self.bias = bias

  def __call__(self, x_SxD, sizes_E):
    kernel_ExDxF = self.kernel[...]
    if sizes_E is None:
      x_ExCxD = x_SxD.reshape(len(kernel_ExDxF), -1, x_SxD.shape[1])
      y_ExCxF = jax.lax.dot_general(x_ExCxD, kernel_ExDxF, (((2,), (1,)), ((0,), (0,))))
      y_ExCxF = checkpoint_name(y_ExCxF, 'product')
      y_ExCxF = y_ExCxF if self.bias is None else y_ExCxF + self._bias()[:, None]
      return y_ExCxF.reshape(len(x_SxD), -1)
    y_SxF = grouped_matmul(x_SxD, kernel_ExDxF, sizes_E, implementation=self.implementation)
    y_SxF = checkpoint_name(y_SxF, 'residual')
    if self.bias is None:
      return y_SxF
    return y_SxF + jnp.repeat(self._bias(), sizes_E, axis=0, total_repeat_length=len(x_SxD))

  def _bias(self):
    """Of devices that hold parts of the inputs, and so of the sum, the first adds it."""
    return jnp.where(ax.offset(self.in_axis, 1) == 0, self.bias[...], 0.0)
