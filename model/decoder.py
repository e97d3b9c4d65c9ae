"""The decoder-only family: GPT and LLaMA shapes by configuration. B batch, L length, D embed, V vocab."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx

from model import counts, layers
from model import positions as pos
from model.block import Block, segments
from model.context import Cache, for_self_attention
from model.stack import Stack, logical_axes
from model.stream import Stream, Visibility
from pallas_kernels import CrossEntropy, linear_cross_entropy
from parallel import axes as ax


class Stem(nnx.Module):
  """What stands around the stack of blocks: embeddings, the last norm and the head."""

  def __init__(self, model_config, *, rngs):
    vocab = model_config.vocab_size
    self.embedding = layers.Embedding('embedding', model_config, vocab, ax.VOCAB, rngs=rngs)
    learned, pre_norm = model_config.positions == 'learned', model_config.norm_position == 'pre'
    self.position = (
      layers.Embedding('position', model_config, model_config.max_length, ax.LENGTH, rngs=rngs) if learned else None
    )
    self.final_norm = layers.norm('final_norm', model_config) if pre_norm else None
    tied = model_config.tie_embeddings
    self.head = None if tied else layers.Embedding('head', model_config, vocab, ax.VOCAB, rngs=rngs)


@dataclasses.dataclass(frozen=True, eq=False)
class Decoder:
  """A decoder-only transformer as pure functions of its parameters.

  Parameters are a nested dict of float32 arrays; those of the layers are stacked over repeats, see `Stack`.
  """

  config: object
  stem: nnx.GraphDef
  stack: Stack

  def init(self, key) -> dict:
    """Fresh parameters from a PRNG key; traceable, so that jit can create them already sharded."""
    stem_key, stack_key = jax.random.split(key)
    stem = nnx.to_pure_dict(nnx.state(Stem(self.config, rngs=nnx.Rngs(params=stem_key))))
    return stem | self.stack.init(stack_key)

  def logical_axes(self) -> dict:
    """The tree of parameters with a tuple of logical axis names at each leaf."""
    return logical_axes(_abstract_stem(self.config)) | self.stack.logical_axes()

  def hidden(self, params, stream: Stream, rng=None, visibility: Visibility = Visibility.CAUSAL):
    """The residual stream after the last norm.

    Args:
      params: the parameters.
      stream: what to read.
      rng: PRNG key that turns dropout on, or None.
      visibility: which tokens of its segment a token sees.

    Returns:
      float [B, L, D], and the metrics of the layers.
    """
    hidden_BxLxD, _, metrics = self._read(params, stream, visibility, rng)
    return hidden_BxLxD, metrics

  def prefill(self, params, stream: Stream, slots: int, visibility: Visibility = Visibility.CAUSAL):
    """Reads prompts in one pass.

    Args:
      params: the parameters, those of `unstacked` or not.
      stream: prompts [B, L], padded on the left with segment 0.
      slots: of the cache, at least the prompts' and those of the tokens that will follow.
      visibility: causal or prefix.

    Returns:
      float32 logits [B, V] of the first new token, and the cache.
    """
    cache = Cache.empty(
      self.stack.num_layers, len(stream.tokens), slots, self.config.num_kv_heads, self.config.head_dim
    )
    hidden_BxLxD, cache, _ = self._read(params, stream, visibility, cache=cache)
    return self.logits(params, hidden_BxLxD[:, -1:])[:, 0], cache

  def extend(self, params, cache: Cache, token_B, position_B):
    """Reads one more token a row, int32 [B] with its position; returns float32 logits [B, V] of the next, the cache."""
    stream = Stream(token_B[:, None], position_B[:, None], jnp.ones_like(token_B)[:, None])
    hidden_Bx1xD, cache, _ = self._read(params, stream, Visibility.CAUSAL, cache=cache)
    return self.logits(params, hidden_Bx1xD)[:, 0], cache

  @property
  def length_limit(self) -> int | float:
    """Tokens that a text may have at most: as many as there are learned positions, or infinity."""
    return self.config.max_length if self.config.positions == 'learned' else math.inf

  def _read(self, params, stream, visibility, rng=None, cache=None):
    stem = nnx.merge(self.stem, {k: v for k, v in params.items() if k not in self.stack.names})
    stem_key, layer_keys = None, None
    if rng is not None:
      stem_key, stack_key = jax.random.split(rng)
      layer_keys = jax.random.split(stack_key, self.stack.num_layers)
    x = self._embed(stem, stream, stem_key)
    rotation = None
    if self.config.positions == 'rope':
      rotation = pos.rotation(stream.positions, self.config.head_dim, self.config.rope_theta)
    context = for_self_attention(stream, visibility, rotation, cache)
    x, caches, metrics = self.stack.run(
      params,
      x,
      context,
      layer_keys,
      None if cache is None else cache.layers,
      layer_loop=self.config.layer_loop,
      remat=self.config.remat,
    )
    if cache is not None:
      cache = cache.extended(caches, context.keys, stream.tokens.shape[1])
    if stem.final_norm is not None:
      x = stem.final_norm(x)
    return x, cache, metrics

  def _embed(self, stem, stream, key):
    x = stem.embedding(stream.tokens)
    if stem.position is not None:
      x = x + stem.position(stream.positions)
    if self.config.positions == 'sinusoidal':
      x = x + pos.sinusoidal(stream.positions, self.config.embed_dim)
    x = layers.dropout(x, self.config.dropout_rate, key)
    return ax.constrain(x, (ax.BATCH, ax.LENGTH, ax.EMBED))

  def head_kernel(self, params) -> jax.Array:
    """The head's weights [V, D]: the embedding table when tied."""
    return params['embedding' if self.config.tie_embeddings else 'head']['table']

  def logits(self, params, hidden_BxLxD) -> jax.Array:
    """Next-token logits [B, L, V]."""
    with jax.named_scope('head'):
      return jnp.einsum('BLD,VD->BLV', hidden_BxLxD, self.head_kernel(params))

  def cross_entropy(self, params, hidden_BxLxD, labels_BxL, label_smoothing=0.0, z_loss=0.0) -> CrossEntropy:
    """Head and cross-entropy in one, without ever holding all logits; negative labels are ignored."""
    rows, table = (ax.BATCH, ax.LENGTH), ax.Stored((ax.VOCAB, ax.EMBED))

    def on_device(hidden, kernel, labels):
      result = linear_cross_entropy(
        hidden,
        kernel,
        labels,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        axis_name=ax.stored_over(ax.VOCAB),
        embed_axis_name=ax.stored_over(ax.EMBED),
      )
      return result._replace(total=ax.sum_over(ax.BATCH, result.total))

    on_devices = ax.on_each_device(on_device, ((*rows, ax.EMBED), table, rows), CrossEntropy((), rows, rows))
    with jax.named_scope('head'):
      return on_devices(hidden_BxLxD, self.head_kernel(params), labels_BxL)

  def unstacked(self, params) -> dict:
    """The parameters with one tree a repeat: what a decode loop should hold."""
    return self.stack.unstacked(params)

  @functools.cached_property
  def num_params(self) -> int:
    """The number of parameters; tied weights count once."""
    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(self.init, jax.random.key(0))))

  def flops_per_token(self, sequence_length: int) -> float:
    """FLOPs of one training step, forward and backward, for one token of a row of `sequence_length`."""
    specs = [spec for segment in self.stack.segments for spec in segment.pattern * segment.repeats]
    windows = [spec.window for spec in specs]
    return counts.decoder_flops_per_token(
      self.config, sequence_length, windows, expert_layers=sum(spec.experts for spec in specs)
    )


def create(model_config) -> Decoder:
  """The decoder of a resolved config, without parameters.

  Raises:
    ValueError: the pattern of layers is not one.
  """
  create_block = lambda scope, spec, *, rngs: Block(scope, model_config, spec, rngs=rngs)
  return Decoder(model_config, nnx.graphdef(_abstract_stem(model_config)), Stack(segments(model_config), create_block))


def _abstract_stem(model_config):
  return nnx.eval_shape(lambda: Stem(model_config, rngs=nnx.Rngs(params=jax.random.key(0))))
