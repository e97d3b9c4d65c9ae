"""Linear layers, embeddings, norms and dropout: float32 mathematics, logical axes, scopes.

Shapes in names: B batch, L length, D embed, V vocab.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from parallel import axes as ax

NORMS = ('rmsnorm', 'layernorm')
INITS = ('normal', 'fan_in', 'xavier')


class Module(nnx.Module):
  """An nnx module whose call runs inside `jax.named_scope(self.scope)`, and whose (first) output is named 'output'.

  Scopes nest, so every operation of the loss carries the path of its module's parameters, such as `layers/mlp/up`.
  """

  scope: str

  def __init_subclass__(cls, **kwargs):
    super().__init_subclass__(**kwargs)
    if '__call__' in cls.__dict__:
      cls.__call__ = _scoped(cls.__call__)


def _scoped(call):
  @functools.wraps(call)
  def wrapped(self, *args, **kwargs):
    with jax.named_scope(self.scope):
      y = call(self, *args, **kwargs)
      if isinstance(y, tuple):
        return checkpoint_name(y[0], 'output'), *y[1:]
      return checkpoint_name(y, 'output')

  return wrapped


def initializer(model_config, fan_in: int, fan_out: int, residual: bool = False):
  """The weight initialiser of the config.

  `residual` marks the outputs of residual branches, which `init_depth_scaling` makes 1/sqrt(2 num_layers) smaller
  (Radford et al. 2019, section 2.3).
  """
  scale = model_config.init_scale
  stddev = {'normal': scale, 'fan_in': scale / math.sqrt(fan_in), 'xavier': scale * math.sqrt(2 / (fan_in + fan_out))}[
    model_config.init
  ]
  if residual and model_config.init_depth_scaling:
    stddev /= math.sqrt(2 * model_config.num_layers)
  return jax.nn.initializers.normal(stddev)


class Linear(Module):
  """y = x W (+ b), contracting the trailing `len(in_shape)` dimensions of x; b by the config where `bias` is None."""

  def __init__(self, scope, model_config, in_shape, in_axes, out_shape, out_axes, *, rngs, residual=False, bias=None):
    self.scope = scope
    self.num_inputs = len(in_shape)
    init = initializer(model_config, math.prod(in_shape), math.prod(out_shape), residual)
    self.kernel = nnx.Param(init(rngs.params(), (*in_shape, *out_shape)), axes=(*in_axes, *out_axes))
    has_bias = model_config.use_bias if bias is None else bias
    self.bias = nnx.Param(jnp.zeros(out_shape), axes=tuple(out_axes)) if has_bias else None

  def __call__(self, x):
    n = self.num_inputs
    contracting = (tuple(range(x.ndim - n, x.ndim)), tuple(range(n)))
    y = jax.lax.dot_general(x, self.kernel[...], (contracting, ((), ())))
    return y if self.bias is None else y + self.bias[...]


class Embedding(Module):
  """A table of vectors, [rows, D]."""

  def __init__(self, scope, model_config, rows, rows_axis, *, rngs):
    self.scope, self.axes = scope, (rows_axis, ax.EMBED)
    init = initializer(model_config, model_config.embed_dim, model_config.embed_dim)
    self.table = nnx.Param(init(rngs.params(), (rows, model_config.embed_dim)), axes=self.axes)

  def __call__(self, ids_BxL):
    return ax.lookup(self.table[...], self.axes, ids_BxL)


class RMSNorm(Module):
  """x / sqrt(mean(x^2) + epsilon) * scale over the last dimension (Zhang and Sennrich 2019, eq. 4).

  `unit_offset` is what the scale is kept as a difference from: 1 or 0.
  """

  def __init__(self, scope, dim, axis, epsilon, unit_offset=0):
    self.scope, self.epsilon, self.unit_offset = scope, epsilon, unit_offset
    self.scale = nnx.Param(jnp.full(dim, 1.0 - unit_offset), axes=(axis,))

  def __call__(self, x):
    mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(mean_square + self.epsilon) * _scale(self)


class LayerNorm(Module):
  """(x - mean) / sqrt(var + epsilon) * scale (+ bias) over the last dimension (Ba et al. 2016, eq. 4); `unit_offset` as
  for `RMSNorm`."""

  def __init__(self, scope, dim, axis, epsilon, use_bias, unit_offset=0):
    self.scope, self.epsilon, self.unit_offset = scope, epsilon, unit_offset
    self.scale = nnx.Param(jnp.full(dim, 1.0 - unit_offset), axes=(axis,))
    self.bias = nnx.Param(jnp.zeros(dim), axes=(axis,)) if use_bias else None

  def __call__(self, x):
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    y = centred * jax.lax.rsqrt(variance + self.epsilon) * _scale(self)
    return y if self.bias is None else y + self.bias[...]


def _scale(norm):
  return norm.scale[...] + norm.unit_offset if norm.unit_offset else norm.scale[...]


def norm(scope, model_config):
  """The norm over the residual stream that the config names."""
  if model_config.norm == 'rmsnorm':
    return rms_norm(scope, model_config, model_config.embed_dim, ax.EMBED)
  return LayerNorm(
    scope,
    model_config.embed_dim,
    ax.EMBED,
    model_config.norm_epsilon,
    model_config.use_bias,
    int(model_config.norm_unit_offset),
  )


def rms_norm(scope, model_config, dim, axis):
  """RMSNorm over `dim` with the values of the config."""
  return RMSNorm(scope, dim, axis, model_config.norm_epsilon, int(model_config.norm_unit_offset))


def dropout(x, rate: float, key):
  """Zeroes a share `rate` of x and scales the rest by 1/(1 - rate); x itself without a key or a rate."""
  if key is None or rate == 0.0:
    return x
  keep = checkpoint_name(jax.random.bernoulli(key, 1.0 - rate, x.shape), 'dropout_mask')
  return jnp.where(keep, x / (1.0 - rate), 0.0)
