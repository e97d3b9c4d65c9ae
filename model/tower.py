"""A stack of blocks with what tells it the places of tokens, and its norms. B batch, L length, D embed."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from model import latent, layers, relative
from model import positions as pos
from model.block import Block
from model.context import Cache, Context, for_self_attention
from model.pattern import segments
from model.remat import Remat
from model.stack import Stack, logical_axes
from model.stream import Stream, Visibility
from parallel import axes as ax


class Frame(nnx.Module):
  """The modules around the blocks."""

  def __init__(self, model_config, bidirectional: bool, *, rngs):
    def table(name, rows):
      return layers.Embedding(name, model_config, rows, ax.LENGTH, rngs=rngs) if rows else None

    learned, relative_types = model_config.positions == 'learned', model_config.positions == 'xlnet'
    self.position = table('position', model_config.max_length + model_config.position_offset if learned else 0)
    self.token_type = table('token_type', 0 if relative_types else model_config.token_types)
    self.embedding_norm = layers.norm('embedding_norm', model_config) if model_config.embedding_norm else None
    has_buckets = model_config.positions == 't5'
    self.relative = relative.BucketBias('relative', model_config, bidirectional, rngs=rngs) if has_buckets else None
    self.final_norm = layers.norm('final_norm', model_config) if model_config.norm_position != 'post' else None


@dataclasses.dataclass(frozen=True, eq=False)
class Tower:
  """A stack that reads embedded tokens, as pure functions of its parameters.

  Attributes:
    config: of the model, with the sizes of this stack.
    frame: what stands around the blocks.
    names: keys of the frame's parameters.
    stack: the blocks.
  """

  config: object
  frame: nnx.GraphDef
  names: tuple[str, ...]
  stack: Stack
  bidirectional: bool

  def init(self, stack_key, frame_key) -> dict:
    """Fresh parameters."""
    frame = Frame(self.config, self.bidirectional, rngs=nnx.Rngs(params=frame_key))
    return nnx.to_pure_dict(nnx.state(frame)) | self.stack.init(stack_key)

  def logical_axes(self) -> dict:
    """The tree of `init` with a tuple of logical axis names at each leaf."""
    return logical_axes(_abstract(self.config, self.bidirectional)) | self.stack.logical_axes()

  def read(self, params, x_BxLxD, stream: Stream, context: Context, rng=None, cache: Cache | None = None):
    """Applies every layer.

    Args:
      params: hold those of `init`, or the stack's `unstacked`.
      x_BxLxD: the embedded tokens; with `context.targets` those of the second stream behind them.
      stream: the tokens.
      context: from `context`, of this stream.
      rng: PRNG key that turns dropout on, or None.
      cache: what was read before, or None.

    Returns:
      The residual stream after the last norm [B, L, D], the cache or None, and the metrics of the layers.
    """
    frame = self._frame(params)
    x_key, layer_keys = None, None
    if rng is not None:
      x_key, stack_key = jax.random.split(rng)
      layer_keys = jax.random.split(stack_key, self.stack.num_layers)
    x = layers.dropout(self._placed(frame, x_BxLxD, stream), self.config.dropout_rate, x_key)
    x, caches, metrics = self.stack.run(
      params,
      ax.constrain(x, (ax.BATCH, ax.RESIDUAL_LENGTH, ax.EMBED)),
      context,
      layer_keys,
      None if cache is None else cache.layers,
      layer_loop=self.config.layer_loop,
      remat=Remat.of(self.config),
    )
    if cache is not None:
      cache = cache.extended(caches, context.queries)
    return x if frame.final_norm is None else frame.final_norm(x), cache, metrics

  def context(self, params, stream: Stream, visibility: Visibility, cache: Cache | None = None) -> Context:
    """What the layers need to know of a stream.

    Raises:
      ValueError: as `for_self_attention`; or the visibility has no distances where positions are distances.
    """
    context, kind = for_self_attention(stream, visibility, cache), self.config.positions
    keys, changes = context.keys.segment_ids.shape[1], {}
    if kind == 'rope':
      places = stream.positions, self.config.rope, latent.rotary_width(self.config)
      changes['rotations'] = pos.rotation(*places), pos.local_rotation(*places) if any(self.windows) else None
    if kind == 'alibi':
      context.check_distances("model.positions='alibi'", "model.positions='rope' or another")
    if kind == 't5':
      buckets = self._frame(params).relative
      if ax.parts(ax.LENGTH) > 1:
        changes['distances'] = buckets.distances()
      else:
        changes['bias'] = buckets(stream.tokens.shape[1], keys, context.first)
    if kind == 'xlnet' and stream.token_types is not None:
      changes['token_types'] = (stream.token_types, stream.token_types)
    return dataclasses.replace(context, **changes)

  def check_length(self, stream: Stream) -> None:
    """Raises ValueError where rows are longer than the positions learned. Padded prompts need not fit as rows."""
    length, limit = stream.tokens.shape[1], self.config.max_length
    if self.config.positions == 'learned' and length > limit:
      raise ValueError(
        f'a row of {length} tokens is longer than the model.max_length={limit} positions that are learned; cut it, or '
        "use positions that extrapolate, such as model.positions='rope' or 'alibi'"
      )

  def empty_cache(self, rows: int, slots: int) -> Cache:
    """A cache with nothing in it; layers with a window keep that alone, where their positions do not count slots."""
    counts_slots = self.config.positions in ('t5', 'shaw', 'xlnet')
    windows = [0 if counts_slots else window for window in self.windows]
    return Cache.empty(tuple(windows), rows, slots, self.config.num_kv_heads, latent.cached_width(self.config))

  @functools.cached_property
  def windows(self) -> list[int]:
    """The window of each layer; 0 = none."""
    return [spec.window for spec in self._specs]

  @property
  def expert_layers(self) -> int:
    """The number of layers with experts."""
    return sum(spec.experts for spec in self._specs)

  @functools.cached_property
  def _specs(self) -> list:
    return [spec for segment in self.stack.segments for spec in segment.pattern * segment.repeats]

  def _placed(self, frame, x, stream):
    """Embedded tokens with what is added for their type and place."""
    if stream.token_types is not None and not self.config.token_types:
      raise ValueError('Stream.token_types is given, but model.token_types=0; set model.token_types or leave it None')
    if frame.token_type is not None:
      types_BxL = jnp.zeros_like(stream.tokens) if stream.token_types is None else stream.token_types
      x = x + frame.token_type(types_BxL)
    if frame.position is not None:
      x = x + frame.position(stream.positions + self.config.position_offset)
    if self.config.positions == 'sinusoidal':
      x = x + pos.sinusoidal(stream.positions, self.config.embed_dim)
    return x if frame.embedding_norm is None else frame.embedding_norm(x)

  def _frame(self, params):
    return nnx.merge(self.frame, {name: params[name] for name in self.names})


def create(model_config, *, bidirectional: bool, cross: bool = False) -> Tower:
  """The tower of a resolved config, without parameters.

  Args:
    model_config: with the sizes of this stack.
    bidirectional: whether tokens see later ones; decides what T5's buckets tell apart.
    cross: whether its blocks read another stack.

  Raises:
    ValueError: the pattern of layers is not one.
  """
  create_block = lambda scope, spec, *, rngs: Block(scope, model_config, spec, rngs=rngs)
  frame = _abstract(model_config, bidirectional)
  names = tuple(nnx.to_pure_dict(nnx.state(frame)))
  stack = Stack(segments(model_config, cross), create_block)
  return Tower(model_config, nnx.graphdef(frame), names, stack, bidirectional)


def _abstract(model_config, bidirectional):
  return nnx.eval_shape(lambda: Frame(model_config, bidirectional, rngs=nnx.Rngs(params=jax.random.key(0))))
