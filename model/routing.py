"""Which experts a token goes to. B rows, L length, D embed, E experts, K experts of a token, C tokens of an expert."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from model import layers
from model.metrics import Metric
from parallel import axes as ax

ROUTERS = ('softmax', 'sigmoid', 'expert_choice')
# The gradient of the biases of selection only has to have the right sign; beside others it should not weigh in a norm.
_LOAD_SCALE = 1e-6


class Router(layers.Module):
  """Scores of experts in float32, under any precision policy, and the choice of the best.

  `softmax`: probabilities over experts; the K most probable of a token, whose gates are these probabilities (Fedus et
  al. 2022, eq. 1-2, K = 1) or, with `normalize`, divided by their sum (Jiang et al. 2024, Mixtral, which is a softmax
  over the K largest logits). `sigmoid`: the same with affinities that do not compete (DeepSeek-AI 2024, V3, eq. 13-16).
  Either can add a bias to the scores that is for the selection alone (`selection_bias`, Wang et al. 2024), and choose
  among the best groups of experts (DeepSeek-V3, section 2.1.2: a group is as good as its two best experts).
  `expert_choice`: each expert takes the C tokens of a row that score highest with it (Zhou et al. 2022, eq. 1-2), and K
  is how many experts a token has on average.

  The biases of selection are not learned from the loss: the gradient that they get is the excess of each expert's share
  of the tokens over an equal one, times a small constant. It comes from a term of the loss that is always 0, so it adds
  up over microbatches and devices as any gradient does; the optimizer moves a bias against its sign.
  """

  def __init__(self, scope, model_config, *, rngs):
    self.scope = scope
    moe_config = model_config.moe
    self.kind, self.num_experts, self.k = moe_config.router, moe_config.num_experts, moe_config.experts_per_token
    self.num_groups, self.groups_per_token = moe_config.num_groups, moe_config.groups_per_token
    self.normalize, self.routed_scale = moe_config.normalize, moe_config.routed_scale
    self.jitter, self.balance_loss, self.z_loss = moe_config.jitter, moe_config.balance_loss, moe_config.z_loss
    shape = model_config.embed_dim, self.num_experts
    init = layers.initializer(model_config, *shape)
    self.kernel = nnx.Param(init(rngs.params(), shape), axes=(ax.EMBED, ax.SCORES))
    biases = lambda exist: nnx.Param(jnp.zeros(self.num_experts), axes=(ax.SCORES,)) if exist else None
    self.bias = biases(moe_config.router_bias)
    self.selection_bias = nnx.Param(jnp.zeros(self.num_experts), axes=(ax.LOAD,)) if moe_config.selection_bias else None

  def __call__(self, x_BxLxD, real_BxL, key):
    """Routes tokens.

    Args:
      x_BxLxD: what the experts will read.
      real_BxL: bool, False where there is padding, which goes to no expert.
      key: PRNG key of the jitter, a factor in 1 +- `jitter` on each number that is read (Fedus et al. 2022, section
        2.4), or None.

    Returns:
      gates: float32 [B, L, K], factors of the outputs of the experts that each token chose; where experts choose, [B,
        E, C], of the tokens that each expert chose.
      chosen: int32 of the same shape: experts, E where the token is padding; or tokens in [0, L).
      metrics: losses of the router under 'aux/', multiplied by their weights, and figures under 'moe/'.
    """
    if key is not None and self.jitter:
      x_BxLxD = x_BxLxD * jax.random.uniform(key, x_BxLxD.shape, minval=1 - self.jitter, maxval=1 + self.jitter)
    # Asking for the highest precision keeps a product in float32 under `precision` and on accelerators.
    highest, dimensions = jax.lax.Precision.HIGHEST, (((2,), (0,)), ((), ()))
    logits = jax.lax.dot_general(x_BxLxD, self.kernel[...], dimensions, precision=highest)
    if self.bias is not None:
      logits = logits + self.bias[...]
    scores = jax.nn.sigmoid(logits) if self.kind == 'sigmoid' else jax.nn.softmax(logits)
    if self.kind == 'expert_choice':
      gates, chosen, count_BxLxE = self._experts_choose(scores, real_BxL)
    else:
      gates, chosen, count_BxLxE = self._tokens_choose(scores, real_BxL)
    return self.routed_scale * gates, chosen, self._metrics(logits, scores, count_BxLxE, real_BxL)

  def _tokens_choose(self, scores_BxLxE, real_BxL):
    ranked = scores_BxLxE if self.selection_bias is None else scores_BxLxE + self.selection_bias[...]
    of_token = (ax.BATCH, ax.LENGTH, None)
    best = _on_each_device(lambda ranked: jax.lax.top_k(self._best_groups(ranked), self.k)[1], of_token)
    experts = checkpoint_name(best(jax.lax.stop_gradient(ranked)), 'residual')
    is_chosen_BxLxKxE = experts[..., None] == jnp.arange(self.num_experts)
    gates = jnp.sum(jnp.where(is_chosen_BxLxKxE, scores_BxLxE[:, :, None], 0.0), axis=-1)
    if self.normalize:
      gates = gates / (jnp.sum(gates, axis=-1, keepdims=True) + 1e-20)
    count_BxLxE = jnp.sum(is_chosen_BxLxKxE & real_BxL[..., None, None], axis=2, dtype=jnp.float32)
    return gates, jnp.where(real_BxL[..., None], experts, self.num_experts), count_BxLxE

  def _best_groups(self, ranked_BxLxE):
    if self.num_groups == 1:
      return ranked_BxLxE
    groups = ranked_BxLxE.reshape(*ranked_BxLxE.shape[:2], self.num_groups, -1)
    merit = jnp.sum(jax.lax.top_k(groups, min(2, groups.shape[-1]))[0], axis=-1)
    best = jax.lax.top_k(merit, self.groups_per_token)[1]
    is_best = jnp.any(best[..., None] == jnp.arange(self.num_groups), axis=-2)
    return jnp.where(is_best[..., None], groups, -jnp.inf).reshape(ranked_BxLxE.shape)

  def _experts_choose(self, scores_BxLxE, real_BxL):
    length = scores_BxLxE.shape[1]
    capacity = min(length, -(-self.k * length // self.num_experts))
    ranked = jnp.where(real_BxL[..., None], jax.lax.stop_gradient(scores_BxLxE), -1.0).swapaxes(1, 2)
    best = _on_each_device(lambda ranked: jax.lax.top_k(ranked, capacity)[1], (ax.BATCH, None, None))
    tokens = checkpoint_name(best(ranked), 'residual')
    gates = jnp.take_along_axis(jnp.where(real_BxL[..., None], scores_BxLxE, 0.0).swapaxes(1, 2), tokens, axis=2)
    is_chosen_BxExCxL = tokens[..., None] == jnp.arange(length)
    count_BxLxE = jnp.sum(is_chosen_BxExCxL, axis=2, dtype=jnp.float32).swapaxes(1, 2)
    return gates, tokens, count_BxLxE * real_BxL[..., None]

  def _metrics(self, logits, scores, count_BxLxE, real_BxL):
    """Losses and figures over the real tokens of the whole batch, on however many devices it lies.

    `count_BxLxE` is 1 where a token and an expert were chosen for each other.
    """
    real = real_BxL.astype(jnp.float32)
    num_tokens = jnp.sum(real)
    mean = lambda values: jnp.sum(values * real) / jnp.maximum(num_tokens, 1.0)
    probabilities = real[..., None] * scores / (jnp.sum(scores, axis=-1, keepdims=True) + 1e-20)
    count_E = jnp.sum(count_BxLxE, axis=(0, 1))
    share_E = count_E / jnp.maximum(jnp.sum(count_E), 1.0)
    metrics = {
      'moe/max_load': Metric(self.num_experts * jnp.max(share_E), 1.0),
      'moe/router_entropy': Metric(-jnp.sum(jax.scipy.special.xlogy(probabilities, probabilities)), num_tokens),
    }
    if self.z_loss:
      z = jax.nn.logsumexp(logits, axis=-1)
      metrics['aux/z_loss'] = Metric(self.z_loss * mean(jnp.square(z)), 1.0)
    if self.balance_loss or self.selection_bias is not None:
      probability_E = jnp.sum(probabilities, axis=(0, 1)) / jnp.maximum(num_tokens, 1.0)
      loss = self.balance_loss * self.num_experts * jnp.sum(share_E * probability_E)
      metrics['aux/balance_loss'] = Metric(loss + self._follow_load(share_E, num_tokens), 1.0)
    return {name: Metric(*(jnp.asarray(x, jnp.float32) for x in metric)) for name, metric in metrics.items()}

  def _follow_load(self, share_E, num_tokens):
    """0, with the gradient that the biases of selection should get."""
    if self.selection_bias is None:
      return 0.0
    excess = jnp.where(num_tokens > 0, share_E - 1 / self.num_experts, 0.0)
    bias = self.selection_bias[...]
    return _LOAD_SCALE * jnp.sum(excess * (bias - jax.lax.stop_gradient(bias)))


def _on_each_device(choose, axes):
  """`choose` from scores to choices where these lie; XLA would gather the scores of all devices to sort them."""
  return ax.on_each_device(choose, (axes,), axes)
