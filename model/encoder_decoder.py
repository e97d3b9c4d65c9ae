"""Two towers, of which the second reads the first's output. B batch, S source, L target, D embed, V vocab."""

import dataclasses

import jax
import jax.numpy as jnp

from model import counts, tower, vocabulary
from model import metrics as metrics_lib
from model.context import Cache, Context, Side
from model.decoder import Model
from model.stream import Stream, Visibility
from parallel import axes as ax


@dataclasses.dataclass(frozen=True, eq=False)
class EncoderDecoder(Model):
  """An encoder-decoder (Vaswani et al. 2017; T5, BART) with one vocabulary.

  Parameters of the towers stand under `encoder` and `decoder`.
  """

  encoder: tower.Tower
  decoder: tower.Tower

  def init(self, key) -> dict:
    """Fresh parameters from a PRNG key; traceable, so that jit can create them already sharded."""
    vocabulary_key, *keys = jax.random.split(key, 5)
    towers = {'encoder': self.encoder.init(*keys[:2]), 'decoder': self.decoder.init(*keys[2:])}
    return self.vocabulary.init(vocabulary_key) | towers

  def logical_axes(self) -> dict:
    """The tree of parameters with a tuple of logical axis names at each leaf."""
    towers = {'encoder': self.encoder.logical_axes(), 'decoder': self.decoder.logical_axes()}
    return self.vocabulary.logical_axes() | towers

  def encode(self, params, source: Stream, rng=None):
    """The encoder's output, every token seeing all of its segment: float [B, S, D], and the metrics of its layers."""
    x = self.vocabulary.embed(params, source.tokens)
    with jax.named_scope('encoder'):
      context = self.encoder.context(params['encoder'], source, Visibility.BIDIRECTIONAL)
      memory_BxSxD, _, metrics = self.encoder.read(params['encoder'], x, source, context, rng)
    # Here and not in every layer that reads it.
    return ax.constrain(memory_BxSxD, (ax.BATCH, ax.LENGTH, ax.EMBED)), metrics

  def hidden(self, params, source: Stream, target: Stream, rng=None):
    """The decoder's residual stream after the last norm.

    Args:
      params: the parameters.
      source: what the encoder reads.
      target: what the decoder reads: the start token and what was written so far, each token seeing those before it
        and the source tokens of its own segment.
      rng: PRNG key that turns dropout on, or None.

    Returns:
      float [B, L, D], and the metrics of the layers of both.

    Raises:
      ValueError: a row is longer than the positions learned.
    """
    self.encoder.check_length(source)
    self.decoder.check_length(target)
    keys = (None, None) if rng is None else jax.random.split(rng)
    memory_BxSxD, of_encoder = self.encode(params, source, keys[0])
    hidden_BxLxD, _, of_decoder = self._decode(params, memory_BxSxD, source.segment_ids, target, keys[1])
    return hidden_BxLxD, metrics_lib.add(of_encoder, of_decoder)

  def prefill(self, params, stream: Stream, slots: int):
    """Reads sources and the start token.

    Args:
      params: the parameters, those of `unstacked` or not.
      stream: sources [B, S], padded anywhere with segment 0; all of a row is one segment.
      slots: of the cache, at least one more than the tokens that will follow.

    Returns:
      float32 logits [B, V] of the first token, and the cache.
    """
    memory_BxSxD, _ = self.encode(params, stream)
    rows = len(stream.tokens)
    kv_heads, head_dim = self.config.num_kv_heads, self.config.head_dim
    empty = self.decoder.empty_cache(rows, slots)
    across = (jnp.zeros((*stream.tokens.shape, kv_heads, head_dim), memory_BxSxD.dtype),) * 2
    cache = dataclasses.replace(
      empty, layers=tuple((layer, across) for layer in empty.layers), memory=jnp.minimum(stream.segment_ids, 1)
    )
    return self._continue(params, memory_BxSxD, cache, jnp.full(rows, self.config.start_token, jnp.int32))

  def extend(self, params, cache: Cache, token_B, position_B):
    """Reads one more token a row, int32 [B]; returns float32 logits [B, V] of the next, and the cache, which counts the
    positions itself: those of the source do not matter."""
    del position_B
    return self._continue(params, None, cache, token_B)

  def unstacked(self, params) -> dict:
    """The parameters with one tree a repeat: what a decode loop should hold."""
    towers = {'encoder': self.encoder, 'decoder': self.decoder}
    return params | {name: tower.stack.unstacked(params[name]) for name, tower in towers.items()}

  def flops_per_token(self, sequence_length: int) -> float:
    """FLOPs of one training step, forward and backward, for one token of a target of `sequence_length` and one of its
    source, which is as long."""
    of_encoder = self.encoder.flops_per_token(sequence_length)
    return (
      of_encoder
      + self.decoder.flops_per_token(sequence_length, crosses=True)
      + counts.head_flops_per_token(self.config)
    )

  def _continue(self, params, memory_BxSxD, cache, token_B):
    positions = jnp.broadcast_to(cache.length, token_B[:, None].shape)
    target = Stream(token_B[:, None], positions, jnp.ones_like(token_B)[:, None])
    hidden_Bx1xD, cache, _ = self._decode(params, memory_BxSxD, cache.memory, target, cache=cache)
    return self.logits(params, hidden_Bx1xD)[:, 0], cache

  def _decode(self, params, memory_BxSxD, memory_segments_BxS, target, rng=None, cache=None):
    x = self.vocabulary.embed(params, target.tokens)
    with jax.named_scope('decoder'):
      params = params['decoder']
      context = self.decoder.context(params, target, Visibility.CAUSAL, cache)
      filled = None if cache is None else jnp.zeros((), jnp.int32)
      across = Context(Side(target.segment_ids), Side(memory_segments_BxS), length=filled)
      across = dataclasses.replace(across, visibility=Visibility.BIDIRECTIONAL)
      context = dataclasses.replace(context, memory=memory_BxSxD, cross=across)
      return self.decoder.read(params, x, target, context, rng, cache)


def create(model_config) -> EncoderDecoder:
  """The encoder-decoder of a resolved config, without parameters. Raises ValueError as `tower.create`."""
  of_encoder, sizes = model_config.copy_and_resolve_references(), model_config.encoder
  with of_encoder.unlocked():
    of_encoder.num_layers, of_encoder.mlp_dim, of_encoder.head_dim = sizes.num_layers, sizes.mlp_dim, sizes.head_dim
    if sizes.num_heads != model_config.num_heads:
      of_encoder.num_heads = of_encoder.num_kv_heads = sizes.num_heads
  return EncoderDecoder(
    model_config,
    vocabulary.create(model_config),
    tower.create(of_encoder, bidirectional=True),
    tower.create(model_config, bidirectional=False, cross=True),
  )
