"""The feed-forward branch. D embed, F mlp."""

import math

import jax
import jax.numpy as jnp

from model import layers
from parallel import axes as ax

# With its derivative: jax 0.12 cannot take that of lax.erf inside shard_map.
_erf = jax.custom_jvp(jax.lax.erf)
_erf.defjvps(lambda tangent, _, x: tangent * (2.0 / math.pi**0.5) * jnp.exp(-x * x))


def _gelu(x):
  # lax.erf directly: jax.nn.gelu(approximate=False) goes through erfc, 4.5 times slower on a CPU.
  return 0.5 * x * (1.0 + _erf(x * (0.5**0.5)))


ACTIVATIONS = {'gelu': _gelu, 'gelu_tanh': jax.nn.gelu, 'relu': lambda x: jnp.maximum(x, 0.0), 'silu': jax.nn.silu}


def _swiglu_oss(gate, up):
  gate = jnp.minimum(gate, 7.0)
  return gate * jax.nn.sigmoid(1.702 * gate) * (jnp.clip(up, -7.0, 7.0) + 1.0)


# Those that are more than activation(gate) * up: of OpenAI 2025, gpt-oss model card, section 2.2, clamped at 7.
GATED = {'swiglu_oss': _swiglu_oss}


def activate(activation: str, up, gate=None):
  """activation(up), or activation(gate) * up where there is a gate (Shazeer 2020, eq. 6), or what `GATED` says."""
  if activation in GATED:
    return GATED[activation](gate, up)
  return ACTIVATIONS[activation](up) if gate is None else ACTIVATIONS[activation](gate) * up


class FeedForward(layers.Module):
  """down(activation(up x)), or down(activation(gate x) * (up x)) when gated, see `activate`."""

  def __init__(self, scope, model_config, mlp_dim: int | None = None, *, rngs):
    """`mlp_dim`: the width F, by default the config's."""
    self.scope = scope
    self.activation = model_config.activation
    embed, mlp = model_config.embed_dim, mlp_dim or model_config.mlp_dim

    def expansion(name):
      return layers.Linear(name, model_config, (embed,), (ax.EMBED,), (mlp,), (ax.MLP,), rngs=rngs)

    self.up = expansion('up')
    self.gate = expansion('gate') if model_config.gated_mlp else None
    self.down = layers.Linear('down', model_config, (mlp,), (ax.MLP,), (embed,), (ax.EMBED,), rngs=rngs, residual=True)

  def __call__(self, x_BxLxD):
    hidden = (ax.BATCH, ax.LENGTH, ax.MLP)
    gate = None if self.gate is None else ax.constrain(self.gate(x_BxLxD), hidden)
    return self.down(activate(self.activation, ax.constrain(self.up(x_BxLxD), hidden), gate))
