"""The decoder-only family: GPT and LLaMA shapes by configuration. B batch, L length, D embed, V vocab."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from model import counts, layers, stack
from model import positions as pos
from model.attention import Context
from model.block import Block
from pallas_kernels import CrossEntropy, linear_cross_entropy
from parallel import axes as ax

SCOPE = 'decoder'


class Stem(nnx.Module):
  """What stands around the stack of blocks: embeddings, the last norm and the head."""

  def __init__(self, model_config, *, rngs):
    vocab = model_config.vocab_size
    self.embedding = layers.Embedding('embedding', model_config, vocab, ax.VOCAB, rngs=rngs)
    learned, pre_norm = model_config.positions == 'learned', model_config.norm_position == 'pre'
    self.position = layers.Embedding('position', model_config, model_config.max_length, ax.LENGTH,
                                     rngs=rngs) if learned else None
    self.final_norm = layers.norm('final_norm', model_config) if pre_norm else None
    tied = model_config.tie_embeddings
    self.head = None if tied else layers.Embedding('head', model_config, vocab, ax.VOCAB, rngs=rngs)


@dataclasses.dataclass(frozen=True, eq=False)
class Decoder:
  """A decoder-only transformer as pure functions of its parameters.

  Parameters are a nested dict of float32 arrays; those of the blocks are stacked on a leading `layers` axis.
  """

  config: object
  stem: nnx.GraphDef
  block: nnx.GraphDef

  def init(self, key) -> dict:
    """Fresh parameters from a PRNG key; traceable, so that jit can create them already sharded."""
    stem_key, block_key = jax.random.split(key)
    params = nnx.to_pure_dict(nnx.state(Stem(self.config, rngs=nnx.Rngs(params=stem_key))))
    create = lambda k: nnx.to_pure_dict(nnx.state(Block('block', self.config, rngs=nnx.Rngs(params=k))))
    params['layers'] = jax.vmap(create)(jax.random.split(block_key, self.config.num_layers))
    return params

  def logical_axes(self) -> dict:
    """The tree of parameters with a tuple of logical axis names at each leaf."""
    stem, block = _abstract_modules(self.config)
    tree = _axes(stem, ())
    tree['layers'] = _axes(block, (ax.LAYERS,))
    return tree

  def hidden(self, params, tokens, positions, segment_ids, rng=None, cache=None):
    """The residual stream after the last norm.

    Args:
      params: the parameters; with a cache also those of `unstacked`.
      tokens: int32 [B, L].
      positions: int32 [B, L], the place of each token in its document.
      segment_ids: int32 [B, L]; tokens see earlier tokens of their own segment; 0 is padding, seen by nobody.
      rng: PRNG key that turns dropout on, or None.
      cache: from `init_cache` or an earlier call: the tokens continue it, seeing it by position.

    Returns:
      float [B, L, D]; with a cache, a pair of it and the new cache.
    """
    with jax.named_scope(SCOPE):
      stem = nnx.merge(self.stem, {k: v for k, v in params.items() if k != 'layers'})
      stem_key, block_keys = None, None
      if rng is not None:
        stem_key, block_key = jax.random.split(rng)
        block_keys = jax.random.split(block_key, self.config.num_layers)
      x = self._embed(stem, tokens, positions, stem_key)
      rotation = None
      if self.config.positions == 'rope':
        rotation = pos.rotation(positions, self.config.head_dim, self.config.rope_theta)
      context = Context(positions, segment_ids, rotation, cache)
      call = lambda layer_params, x, key, layer_cache: nnx.merge(self.block, layer_params)(x, context, key, layer_cache)
      if cache is None:
        x = stack.run(lambda p, x, key: call(p, x, key, None)[0], params['layers'], x, block_keys,
                      layer_loop=self.config.layer_loop, remat=self.config.remat)
      else:
        x, keys_values = stack.run_cached(lambda p, x, c: call(p, x, None, c), params['layers'], x, cache['layers'])
        cache = {'layers': keys_values, 'segment_ids': context.kv_segment_ids, 'positions': context.kv_positions,
                 'length': cache['length'] + tokens.shape[1]}
      if stem.final_norm is not None:
        x = stem.final_norm(x)
      return x if cache is None else (x, cache)

  def _embed(self, stem, tokens, positions, key):
    x = stem.embedding(tokens)
    if stem.position is not None:
      x = x + stem.position(positions)
    if self.config.positions == 'sinusoidal':
      x = x + pos.sinusoidal(positions, self.config.embed_dim)
    x = layers.dropout(x, self.config.dropout_rate, key)
    return ax.constrain(x, (ax.BATCH, ax.LENGTH, ax.EMBED))

  def head_kernel(self, params) -> jax.Array:
    """The head's weights [V, D]: the embedding table when tied."""
    return params['embedding' if self.config.tie_embeddings else 'head']['table']

  def logits(self, params, hidden_BxLxD) -> jax.Array:
    """Next-token logits [B, L, V]."""
    with jax.named_scope(f'{SCOPE}/head'):
      return jnp.einsum('BLD,VD->BLV', hidden_BxLxD, self.head_kernel(params))

  def cross_entropy(self, params, hidden_BxLxD, labels_BxL, label_smoothing=0.0, z_loss=0.0) -> CrossEntropy:
    """Head and cross-entropy in one, without ever holding all logits; negative labels are ignored."""
    rows, table = (ax.BATCH, ax.LENGTH), ax.Stored((ax.VOCAB, ax.EMBED))

    def on_device(hidden, kernel, labels):
      result = linear_cross_entropy(
          hidden, kernel, labels, label_smoothing=label_smoothing, z_loss=z_loss,
          axis_name=ax.stored_over(ax.VOCAB), embed_axis_name=ax.stored_over(ax.EMBED))
      return result._replace(total=ax.sum_over(ax.BATCH, result.total))

    on_devices = ax.on_each_device(on_device, ((*rows, ax.EMBED), table, rows), CrossEntropy((), rows, rows))
    with jax.named_scope(f'{SCOPE}/head'):
      return on_devices(hidden_BxLxD, self.head_kernel(params), labels_BxL)

  def init_cache(self, batch: int, length: int, dtype=jnp.float32) -> dict:
    """An empty cache with `length` slots a row."""
    slots = jnp.zeros((batch, length, self.config.num_kv_heads, self.config.head_dim), dtype)
    return {'layers': ((slots, slots),) * self.config.num_layers, 'length': jnp.zeros((), jnp.int32),
            'segment_ids': jnp.zeros((batch, length), jnp.int32), 'positions': jnp.zeros((batch, length), jnp.int32)}

  def unstacked(self, params) -> dict:
    """The parameters with one tree a layer: what a decode loop should hold."""
    return {**params, 'layers': stack.unstack(params['layers'])}

  @functools.cached_property
  def num_params(self) -> int:
    """The number of parameters; tied weights count once."""
    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(self.init, jax.random.key(0))))

  def flops_per_token(self, sequence_length: int) -> float:
    """FLOPs of one training step, forward and backward, for one token of a row of `sequence_length`."""
    return counts.decoder_flops_per_token(self.config, sequence_length)


def create(model_config) -> Decoder:
  """The decoder of a resolved config, without parameters."""
  stem, block = _abstract_modules(model_config)
  return Decoder(model_config, nnx.graphdef(stem), nnx.graphdef(block))


def _abstract_modules(model_config):
  rngs = lambda: nnx.Rngs(params=jax.random.key(0))
  return (nnx.eval_shape(lambda: Stem(model_config, rngs=rngs())),
          nnx.eval_shape(lambda: Block('block', model_config, rngs=rngs())))


def _axes(module, prefix) -> dict:
  state = nnx.state(module)
  return nnx.to_pure_dict(jax.tree.map(lambda v: v.replace(prefix + v.get_metadata('axes')), state,
                                       is_leaf=lambda v: isinstance(v, nnx.Variable)))
