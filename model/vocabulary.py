"""Where tokens become vectors and vectors become tokens again. B batch, L length, D embed, V vocab."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from model import feed_forward, layers
from model.stack import logical_axes
from pallas_kernels import CrossEntropy, linear_cross_entropy
from parallel import axes as ax


class HeadTransform(layers.Module):
  """norm(activation(dense x)) before a head (Devlin et al. 2019)."""

  def __init__(self, scope, model_config, *, rngs):
    self.scope, self.activation = scope, model_config.activation
    width = (model_config.embed_dim,)
    self.dense = layers.Linear('dense', model_config, width, (ax.EMBED,), width, (ax.MLP,), rngs=rngs)
    self.norm = layers.norm('norm', model_config)

  def __call__(self, x_BxLxD):
    return self.norm(feed_forward.ACTIVATIONS[self.activation](self.dense(x_BxLxD)))


class Head(nnx.Module):
  """The parameters of a head: a table [V, D] unless it is the embedding's, and a bias [V] where there is one."""

  def __init__(self, model_config, *, rngs):
    vocab = model_config.vocab_size
    tied = model_config.tie_embeddings
    self.table = None if tied else layers.Embedding('head', model_config, vocab, ax.VOCAB, rngs=rngs).table
    self.bias = nnx.Param(jnp.zeros(vocab), axes=(ax.VOCAB,)) if model_config.head_bias else None


class Tables(nnx.Module):
  """The modules of a vocabulary."""

  def __init__(self, model_config, *, rngs):
    self.embedding = layers.Embedding('embedding', model_config, model_config.vocab_size, ax.VOCAB, rngs=rngs)
    self.head_transform = (
      HeadTransform('head_transform', model_config, rngs=rngs) if model_config.head_transform else None
    )
    is_xlnet = model_config.positions == 'xlnet'
    self.mask = layers.Embedding('mask', model_config, 1, ax.LENGTH, rngs=rngs) if is_xlnet else None
    has_head = model_config.head_bias or not model_config.tie_embeddings
    self.head = Head(model_config, rngs=rngs) if has_head else None


@dataclasses.dataclass(frozen=True, eq=False)
class Vocabulary:
  """Embedding and head of a model as pure functions of all its parameters."""

  config: object
  graph: nnx.GraphDef
  names: tuple[str, ...]

  def init(self, key) -> dict:
    """Fresh parameters."""
    return nnx.to_pure_dict(nnx.state(Tables(self.config, rngs=nnx.Rngs(params=key))))

  def logical_axes(self) -> dict:
    """The tree of `init` with a tuple of logical axis names at each leaf."""
    return logical_axes(_abstract(self.config))

  def embed(self, params, tokens_BxL) -> jax.Array:
    """Vectors [B, L, D]."""
    x = self._modules(params).embedding(tokens_BxL)
    scale = self.config.embedding_scale
    return x if scale == 1.0 else x * scale

  def embed_targets(self, params, shape: tuple[int, int]) -> jax.Array:
    """The vector of a token that is to be predicted, as often as `shape` [B, M] says: [B, M, D]."""
    return self._modules(params).mask(jnp.zeros(shape, jnp.int32))

  def head_kernel(self, params) -> jax.Array:
    """The head's weights [V, D]: the embedding table when tied."""
    return params['embedding' if self.config.tie_embeddings else 'head']['table']

  def logits(self, params, hidden_BxLxD) -> jax.Array:
    """softcap(logit_scale head x + bias), [B, L, V]."""
    hidden_BxLxD, softcap = self._transformed(params, hidden_BxLxD), self.config.logit_softcap
    with jax.named_scope('head'):
      logits = jnp.einsum('BLD,VD->BLV', hidden_BxLxD, self.head_kernel(params))
      if self.config.head_bias:
        logits += params['head']['bias']
      return softcap * jnp.tanh(logits / softcap) if softcap else logits

  def cross_entropy(self, params, hidden_BxLxD, labels_BxL, label_smoothing=0.0, z_loss=0.0) -> CrossEntropy:
    """Head and cross-entropy in one, without ever holding all logits; negative labels are ignored."""
    table = (ax.VOCAB, ax.EMBED)
    arguments = [self._transformed(params, hidden_BxLxD), self.head_kernel(params), labels_BxL]
    vocab_axes, embed_axes = ax.stored_over(table, arguments[1].shape)
    # Devices that do not share a token's vocabulary share the tokens.
    rows = (ax.BATCH, ax.LENGTH if vocab_axes else ax.RESIDUAL_LENGTH)
    axes = [(*rows, ax.EMBED), ax.Stored(table), rows]
    if self.config.head_bias:
      arguments.append(params['head']['bias'])
      axes.append(ax.Used((ax.VOCAB,)))

    def on_device(hidden, kernel, labels, bias=None):
      result = linear_cross_entropy(
        hidden,
        kernel,
        labels,
        bias,
        softcap=self.config.logit_softcap or None,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        axis_name=vocab_axes,
        embed_axis_name=embed_axes,
      )
      return result._replace(total=ax.sum_over(rows, result.total))

    on_devices = ax.on_each_device(on_device, tuple(axes), CrossEntropy((), rows, rows))
    with jax.named_scope('head'):
      return on_devices(*arguments)

  def _transformed(self, params, hidden_BxLxD):
    if self.config.head_transform:
      hidden_BxLxD = self._modules(params).head_transform(hidden_BxLxD)
    scale = self.config.logit_scale
    return hidden_BxLxD if scale == 1.0 else hidden_BxLxD * scale

  def _modules(self, params):
    return nnx.merge(self.graph, {name: params[name] for name in self.names})


def create(model_config) -> Vocabulary:
  """The vocabulary of a resolved config, without parameters."""
  tables = _abstract(model_config)
  return Vocabulary(model_config, nnx.graphdef(tables), tuple(nnx.to_pure_dict(nnx.state(tables))))


def _abstract(model_config):
  return nnx.eval_shape(lambda: Tables(model_config, rngs=nnx.Rngs(params=jax.random.key(0))))
