"""The stack of one tower: GPT and LLaMA shapes, BERT's and XLNet's, by configuration. B batch, L length, D embed, V
vocab."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from model import tower, vocabulary
from model.context import Cache, Side
from model.stack import Stack
from model.stream import Stream, Visibility
from pallas_kernels import CrossEntropy


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
  """What all families are: pure functions of a nested dict of float32 arrays.

  Parameters of layers are stacked over repeats, see `Stack`.
  """

  config: object
  vocabulary: vocabulary.Vocabulary

  def logits(self, params, hidden_BxLxD) -> jax.Array:
    """Token logits [B, L, V]."""
    return self.vocabulary.logits(params, hidden_BxLxD)

  def cross_entropy(self, params, hidden_BxLxD, labels_BxL, label_smoothing=0.0, z_loss=0.0) -> CrossEntropy:
    """Head and cross-entropy in one, without ever holding all logits; negative labels are ignored."""
    return self.vocabulary.cross_entropy(params, hidden_BxLxD, labels_BxL, label_smoothing, z_loss)

  def head_kernel(self, params) -> jax.Array:
    """The head's weights [V, D]: the embedding table when tied."""
    return self.vocabulary.head_kernel(params)

  @property
  def length_limit(self) -> int | float:
    """Tokens that a text may have at most: as many as there are learned positions, or infinity."""
    return self.config.max_length if self.config.positions == 'learned' else math.inf

  @functools.cached_property
  def num_params(self) -> int:
    """The number of parameters; tied weights count once."""
    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(self.init, jax.random.key(0))))


@dataclasses.dataclass(frozen=True, eq=False)
class SingleStack(Model):
  """A transformer of one tower; `visibility` is which tokens of its segment a token sees unless said otherwise."""

  tower: tower.Tower
  visibility: Visibility

  def init(self, key) -> dict:
    """Fresh parameters from a PRNG key; traceable, so that jit can create them already sharded."""
    vocabulary_key, stack_key, frame_key = jax.random.split(key, 3)
    return self.vocabulary.init(vocabulary_key) | self.tower.init(stack_key, frame_key)

  def logical_axes(self) -> dict:
    """The tree of parameters with a tuple of logical axis names at each leaf."""
    return self.vocabulary.logical_axes() | self.tower.logical_axes()

  @property
  def stack(self) -> Stack:
    """The blocks."""
    return self.tower.stack

  def hidden(self, params, stream: Stream, rng=None, visibility: Visibility | None = None):
    """The residual stream after the last norm.

    Args:
      params: the parameters.
      stream: what to read.
      rng: PRNG key that turns dropout on, or None.
      visibility: which tokens of its segment a token sees; None = that of the family.

    Returns:
      float [B, L, D], and the metrics of the layers.

    Raises:
      ValueError: visibility and positions do not go together, or the row is longer than the positions learned.
    """
    self.tower.check_length(stream)
    context = self.tower.context(params, stream, visibility or self.visibility)
    x = self.vocabulary.embed(params, stream.tokens)
    hidden_BxLxD, _, metrics = self.tower.read(params, x, stream, context, rng)
    return hidden_BxLxD, metrics

  def hidden_two_streams(self, params, stream: Stream, targets_BxM, rng=None):
    """What is known of some tokens from those before them in `stream.order` (Yang et al. 2019, section 2.3).

    The content stream reads every token as `hidden` does with visibility ORDER; the query stream knows the place of its
    token and sees the content of those of a lower order alone.

    Args:
      params: the parameters.
      stream: what to read, with an order.
      targets_BxM: int32, the indices in the row of the tokens that are predicted; -1 = none.
      rng: PRNG key that turns dropout on, or None.

    Returns:
      float [B, M, D] to predict the targets from, and the metrics of the layers.

    Raises:
      ValueError: positions are not those of XLNet.
    """
    if self.config.positions != 'xlnet':
      raise ValueError(
        f'two streams need relative positions that a token without content has too, but model.positions='
        f"{self.config.positions!r}; set model.positions='xlnet'"
      )
    context = self.tower.context(params, stream, Visibility.ORDER)
    targets = jnp.maximum(targets_BxM, 0)
    at_targets = lambda values_BxL: jnp.take_along_axis(values_BxL, targets, axis=1)
    both = lambda values_BxL, of_targets: jnp.concatenate([values_BxL, of_targets.astype(values_BxL.dtype)], axis=1)
    segments = jnp.where(targets_BxM < 0, 0, at_targets(stream.segment_ids))
    queries = Side(both(stream.segment_ids, segments), both(stream.order, at_targets(stream.order) - 1)).of_whole_rows()
    types = stream.token_types
    if types is not None:
      types = both(types, at_targets(types)), types
    context = dataclasses.replace(context, queries=queries, token_types=types, targets=targets)
    x = both(self.vocabulary.embed(params, stream.tokens), self.vocabulary.embed_targets(params, targets.shape))
    hidden_BxNxD, _, metrics = self.tower.read(params, x, stream, context, rng)
    return hidden_BxNxD[:, stream.tokens.shape[1] :], metrics

  def unstacked(self, params) -> dict:
    """The parameters with one tree a repeat: what a decode loop should hold."""
    return self.stack.unstacked(params)


class Decoder(SingleStack):
  """A transformer of one tower that generates; with visibility PREFIX each token of a prompt sees all of it."""

  def prefill(self, params, stream: Stream, slots: int):
    """Reads prompts in one pass.

    Args:
      params: the parameters, those of `unstacked` or not.
      stream: prompts [B, L], padded on the left with segment 0.
      slots: of the cache, at least the prompts' and those of the tokens that will follow.

    Returns:
      float32 logits [B, V] of the first new token, and the cache.
    """
    if self.visibility is Visibility.PREFIX:
      stream = dataclasses.replace(stream, order=jnp.zeros_like(stream.tokens))
    return self._continue(params, self.tower.empty_cache(len(stream.tokens), slots), stream, self.visibility)

  def extend(self, params, cache: Cache, token_B, position_B):
    """Reads one more token a row, int32 [B] with its position; returns float32 logits [B, V] of the next, the cache."""
    stream = Stream(token_B[:, None], position_B[:, None], jnp.ones_like(token_B)[:, None])
    return self._continue(params, cache, stream, Visibility.CAUSAL)

  def _continue(self, params, cache, stream, visibility):
    context = self.tower.context(params, stream, visibility, cache)
    x = self.vocabulary.embed(params, stream.tokens)
    hidden_BxLxD, cache, _ = self.tower.read(params, x, stream, context, cache=cache)
    return self.logits(params, hidden_BxLxD[:, -1:])[:, 0], cache


def create_decoder(model_config) -> Decoder:
  """The decoder of a resolved config, without parameters. Raises ValueError as `tower.create`."""
  parts = vocabulary.create(model_config), tower.create(model_config, bidirectional=False)
  return Decoder(model_config, *parts, Visibility.CAUSAL)


def create_encoder(model_config) -> SingleStack:
  """The encoder of a resolved config, without parameters. Raises ValueError as `tower.create`."""
  parts = vocabulary.create(model_config), tower.create(model_config, bidirectional=True)
  return SingleStack(model_config, *parts, Visibility.BIDIRECTIONAL)
