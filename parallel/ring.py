"""Ring attention: the tokens of a row lie on several devices, and blocks of keys and values go round.

Called on every device's part inside `jax.shard_map`; each device holds neighbouring tokens of a row, in order.

Shapes in names: B batch, L tokens of a device, N devices, H heads, G kv_heads, K head_dim; C chunks of a device's
tokens, T tokens of a chunk.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from parallel import zigzag
from parallel.pieces import Piece, vary_alike, with_gradients


@dataclasses.dataclass(frozen=True)
class Ring:
  """Ring attention (Liu et al. 2023): queries stay, blocks of keys and values go round, results merge by their lse.

  The backward pass goes round once more, with the gradients of keys and values behind them, and computes probabilities
  again from the final lse; so a device holds its own tokens and one block of another's, however many devices there are.
  Pairs of blocks in which segments, orders and window leave nothing visible are skipped; a causal window ends the round
  after as many devices as it reaches over. Where later tokens see more, tokens are brought to where all devices have
  the same to do, and the results back, see `zigzag`.

  Attributes:
    axis_names: mesh axes that split the length.
  """

  axis_names: tuple[str, ...]

  def __call__(self, core, q, k, v, spec, distances=None):
    """Returns the output [B, L, H, K] in q's dtype and the lse [B, L, H] of this device's queries.

    Args:
      core: attention to some keys: `attend(q, k, v, spec) -> (out, lse)`, and `gradients(q, k, v, spec, out, lse,
        d_out, d_lse) -> (d_q, d_k, d_v, d_spec)` given what came out with all keys; see `pallas_kernels.Core`.
      q: [B, L, H, K], this device's.
      k: [B, L', G, K], this device's.
      v: as k.
      spec: as `pallas_kernels.AttentionSpec`, a dataclass. Its segment ids and orders are of whole rows [B, N L] and
        [B, N L']; its bias is of this device's queries and all keys [B or 1, H or 1, L or 1, N L'].
      distances: bias by distance: a pytree with `bias(queries, keys, first) -> [1, H, queries, keys]`, where `first` is
        the place of the first query, counted from the first key; or None.

    Raises:
      ValueError: distances count to both sides, or a device's tokens cannot be halved.
    """
    self._check(spec)
    looks_back = spec.causal or spec.q_order is not None
    balanced = looks_back and not spec.window and spec.bias is None and q.shape[1] == k.shape[1]
    route = _Route(self.axis_names, zigzag.CHUNKS if balanced else 1, self._hops(spec, k.shape[1]))
    q, k, v, spec, distances = vary_alike((q, k, v, spec, distances))
    if not balanced:
      return _ring(core, route, q, k, v, spec, distances)
    q, k, v = (zigzag.enter(x, self.axis_names) for x in (q, k, v))
    return tuple(zigzag.leave(x, self.axis_names) for x in _ring(core, route, q, k, v, spec, distances))

  def _check(self, spec):
    if spec.causal and spec.q_order is not None:
      raise ValueError('ring attention takes causal=True or orders, not both; give orders that say all')
    if (spec.window or spec.alibi_slopes is not None) and not spec.causal and spec.q_order is None:
      raise ValueError(
        'ring attention measures distances backwards only, and here tokens see later ones with a window or ALiBi '
        "slopes; set model.attention.context_parallel='all_to_all', or mesh.sequence=1"
      )

  def _hops(self, spec, keys):
    """How many devices a block of keys visits after its own."""
    others = lax.axis_size(self.axis_names) - 1
    return min(others, -(-(spec.window - 1) // keys)) if spec.window and spec.causal else others


@dataclasses.dataclass(frozen=True)
class _Route:
  """How blocks go round: each device holds `chunks` runs of tokens, and a block visits `hops` other devices."""

  axis_names: tuple[str, ...]
  chunks: int
  hops: int

  def rotate(self, tree, hops: int = 1):
    """What the device `hops` before has."""
    devices = lax.axis_size(self.axis_names)
    pairs = [(device, (device + hops) % devices) for device in range(devices)]
    return jax.tree.map(lambda x: lax.ppermute(x, self.axis_names, pairs), tree)

  def piece(self, spec, q, k, step, a, c) -> Piece:
    """The queries of chunk `a` and the keys of chunk `c` that are here after `step` hops."""
    devices, here = lax.axis_size(self.axis_names), lax.axis_index(self.axis_names)

    def place(device, length, chunk):
      run = length // self.chunks
      index = device if self.chunks == 1 else zigzag.held(device, devices)[chunk]
      return index * run, run

    queries, keys = place(here, q.shape[1], a), place((here - step) % devices, k.shape[1], c)
    return Piece.cut(spec, q.shape[0], queries, keys, behind=devices * (k.shape[1] - q.shape[1]))

  def split(self, x):
    """[B, L, ...] as [C, B, T, ...]."""
    batch, length, *rest = x.shape
    return jnp.moveaxis(x.reshape(batch, self.chunks, length // self.chunks, *rest), 1, 0)

  def join(self, x):
    """The inverse of `split`."""
    chunks, batch, length, *rest = x.shape
    return jnp.moveaxis(x, 0, 1).reshape(batch, chunks * length, *rest)

  def over_pairs(self, visit, state):
    """The state after `state = visit(a, c, state)` for every chunk of queries and every chunk of keys."""
    return lax.fori_loop(0, self.chunks**2, lambda n, state: visit(n // self.chunks, n % self.chunks, state), state)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _ring(core, route, q, k, v, spec, distances):
  return _forward(core, route, q, k, v, spec, distances)


def _ring_fwd(core, route, q, k, v, spec, distances):
  q, k, v = _kept(q, k, v)
  out, lse = _kept(*_forward(core, route, q, k, v, spec, distances))
  return (out, lse), (q, k, v, spec, distances, out, lse)


def _ring_bwd(core, route, kept, cotangents):
  return _backward(core, route, *kept, *cotangents)


_ring.defvjp(_ring_fwd, _ring_bwd)


def _kept(*arrays):
  """The arrays, named as kernels name what their backward pass needs."""
  return tuple(checkpoint_name(x, 'residual') for x in arrays)


def _forward(core, route, q, k, v, spec, distances):
  computed = jnp.promote_types(q.dtype, jnp.float32)
  q_chunks, block = route.split(q), (route.split(k), route.split(v))

  def visit(step, block, state):
    def of_pair(a, c, state):
      piece = route.piece(spec, q, k, step, a, c)

      def merge(state):
        k_chunk, v_chunk = (x[c] for x in block)
        new = core.attend(q_chunks[a], k_chunk, v_chunk, piece.with_bias(piece.bias(spec.bias, distances)))
        merged = _merged(*(x[a] for x in state), *new)
        return tuple(x.at[a].set(y) for x, y in zip(state, merged))

      return lax.cond(piece.visible(), merge, lambda state: state, state)

    return route.over_pairs(of_pair, state)

  def hop(step, carry):
    block, state = carry
    return route.rotate(block), visit(step, block, state)

  state = jnp.zeros(q_chunks.shape, computed), jnp.full(q_chunks.shape[:-1], -jnp.inf, computed)
  carry = lax.fori_loop(0, route.hops, hop, (block, vary_alike(state, q)))
  out, lse = map(route.join, visit(route.hops, *carry))
  if spec.sinks is not None:
    with_sink = jnp.logaddexp(lse, spec.sinks.astype(computed))
    out, lse = out * jnp.exp(lse - with_sink)[..., None], with_sink
  return out.astype(q.dtype), lse


def _merged(out, lse, new_out, new_lse):
  """Output and lse of attention to the keys of both."""
  both = jnp.logaddexp(lse, new_lse)
  share = lambda part: jnp.where(part == -jnp.inf, 0, jnp.exp(part - both))[..., None]
  return out * share(lse) + new_out.astype(out.dtype) * share(new_lse), both


def _backward(core, route, q, k, v, spec, distances, out, lse, d_out, d_lse):
  of_queries = [route.split(x) for x in (q, out, lse, d_out, d_lse)]
  block = route.split(k), route.split(v)
  learned = spec.alibi_slopes, spec.bias, distances
  zeros = lambda tree: vary_alike(jax.tree.map(lambda x: jnp.zeros(x.shape, lse.dtype), tree), q)

  def visit(step, block, staying):
    """Adds this block's share to the gradients of what stays here, and returns them and the gradients of the block."""

    def of_pair(a, c, gradients):
      piece = route.piece(spec, q, k, step, a, c)

      def add(gradients):
        (d_q, d_learned), d_block = gradients
        (k_chunk, v_chunk), (q_chunk, *results) = (x[c] for x in block), (x[a] for x in of_queries)
        bias, pullback = jax.vjp(piece.bias, spec.bias, distances)
        *new, d_spec = core.gradients(q_chunk, k_chunk, v_chunk, piece.with_bias(bias), *results)
        d_block = tuple(x.at[c].add(y.astype(x.dtype)) for x, y in zip(d_block, new[1:]))
        d_learned = jax.tree.map(jnp.add, d_learned, (d_spec.alibi_slopes, *pullback(d_spec.bias)))
        return (d_q.at[a].add(new[0].astype(d_q.dtype)), d_learned), d_block

      return lax.cond(piece.visible(), add, lambda gradients: gradients, gradients)

    return route.over_pairs(of_pair, (staying, zeros(block)))

  def hop(step, carry):
    # The gradients of a block start one hop behind it, and so arrive while the next share is computed.
    block, behind, staying = carry
    coming, arrived = route.rotate(block), route.rotate(behind)
    staying, share = visit(step, block, staying)
    return coming, jax.tree.map(jnp.add, arrived, share), staying

  staying, behind = visit(0, block, zeros((of_queries[0], learned)))
  if route.hops:
    carry = route.rotate(block), behind, staying
    block, behind, staying = lax.fori_loop(1, route.hops, hop, carry)
    arrived = route.rotate(behind)
    staying, share = visit(route.hops, block, staying)
    behind = route.rotate(jax.tree.map(jnp.add, arrived, share), -route.hops)
  d_q, d_learned = staying
  d_q, d_k, d_v = (route.join(x).astype(q.dtype) for x in (d_q, *behind))
  d_slopes, d_bias, d_distances = jax.tree.map(lambda x, like: x.astype(like.dtype), d_learned, learned)
  d_sinks = _d_sinks(spec.sinks, out, lse, d_out, d_lse)
  return d_q, d_k, d_v, with_gradients(spec, alibi_slopes=d_slopes, bias=d_bias, sinks=d_sinks), d_distances


def _d_sinks(sinks, out, lse, d_out, d_lse):
  if sinks is None:
    return None
  d_row = jnp.sum(d_out.astype(lse.dtype) * out.astype(lse.dtype), axis=-1) - d_lse
  return -jnp.sum(jnp.exp(sinks.astype(lse.dtype) - lse) * d_row, axis=(0, 1)).astype(sinks.dtype)
