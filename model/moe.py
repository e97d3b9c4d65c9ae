"""Mixture of experts: many feed-forwards, of which each token passes a few.

Shapes in names: B rows, L length, T = B L tokens, D embed, F mlp, E experts, C rows of an expert, S rows of
all experts.
"""

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
from parallel import axes as ax


class MoE(layers.Module):
  """The feed-forward branch of a layer with experts: sum of gate * expert(x) over the chosen ones, plus shared(x).

  Tokens are sorted by expert; then each expert multiplies its own rows only. Without a capacity no token is dropped and
  the rows are multiplied group by group; with one, or where experts choose, every expert has equally many rows, in part
  perhaps empty. Over a mesh each device sorts and multiplies its own rows of text.
  """

  def __init__(self, scope, model_config, *, rngs):
    self.scope = scope
    moe_config = model_config.moe
    self.num_experts, self.k = moe_config.num_experts, moe_config.experts_per_token
    self.expert_choice = moe_config.router == 'expert_choice'
    self.capacity_factor, self.expert_capacity = moe_config.capacity_factor, moe_config.expert_capacity
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

    def on_device(x_BxLxD, gates, chosen, params):
      experts = nnx.merge(graph, params)
      batch, length, embed = x_BxLxD.shape
      x_TxD = x_BxLxD.reshape(-1, embed)
      if self.expert_choice:
        routes = dispatch.by_expert(chosen, length)
        rows = experts(routes.spread(x_TxD), routes.sizes_E)
        y = routes.collect(rows, gates.swapaxes(0, 1).reshape(-1), batch * length)
      else:
        capacity = self._capacity(length)
        if capacity is None:
          routes = dispatch.dropless(chosen.reshape(-1, self.k), self.num_experts)
        else:
          routes = dispatch.with_capacity(chosen, self.num_experts, capacity)
        rows = experts(routes.spread(x_TxD), routes.sizes_E)
        y = routes.collect(rows, gates.reshape(-1, self.k))
      return y.reshape(x_BxLxD.shape)

    stream, choice = (ax.BATCH, ax.LENGTH, ax.EMBED), (ax.BATCH, None, None)
    return ax.on_each_device(on_device, (stream, choice, choice, None), stream)(x_BxLxD, gates, chosen, params)

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


class Experts(layers.Module):
  """Feed-forwards side by side, see `feed_forward.FeedForward`."""

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
    (fan_in, in_axis), (fan_out, out_axis) = inputs, outputs
    experts = model_config.moe.num_experts
    init = layers.initializer(model_config, fan_in, fan_out, residual)
    self.kernel = nnx.Param(init(rngs.params(), (experts, fan_in, fan_out)), axes=(ax.EXPERTS, in_axis, out_axis))
    bias = nnx.Param(jnp.zeros((experts, fan_out)), axes=(ax.EXPERTS, out_axis)) if model_config.use_bias else None
    self.bias = bias

  def __call__(self, x_SxD, sizes_E):
    kernel_ExDxF = self.kernel[...]
    if sizes_E is None:
      x_ExCxD = x_SxD.reshape(len(kernel_ExDxF), -1, x_SxD.shape[1])
      y_ExCxF = jax.lax.dot_general(x_ExCxD, kernel_ExDxF, (((2,), (1,)), ((0,), (0,))))
      y_ExCxF = checkpoint_name(y_ExCxF, 'product')
      y_ExCxF = y_ExCxF if self.bias is None else y_ExCxF + self.bias[...][:, None]
      return y_ExCxF.reshape(len(x_SxD), -1)
    y_SxF = grouped_matmul(x_SxD, kernel_ExDxF, sizes_E, implementation=self.implementation)
    y_SxF = checkpoint_name(y_SxF, 'residual')
    if self.bias is None:
      return y_SxF
    return y_SxF + jnp.repeat(self.bias[...], sizes_E, axis=0, total_repeat_length=len(x_SxD))
