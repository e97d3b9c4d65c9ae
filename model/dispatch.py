"""Tokens on their way to experts and back.

Shapes in names: B rows of text, L length, T = B L tokens, K experts of a token, E experts, C tokens an expert takes of
a row of text, S rows of the experts' input, D embed.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TokenDispatch:
  """Rows of the experts' input, sorted by expert, where each token has chosen K experts.

  Attributes:
    rows_TxK: int32, the row of each choice; S where it has none.
    choices_S: int32, the choice (token * K + k) that stands in each row; T K where none does.
    sizes_E: int32, the number of rows of each expert, or None where each has S / E.
  """

  rows_TxK: jax.Array
  choices_S: jax.Array
  sizes_E: jax.Array | None

  def spread(self, x_TxD):
    """The experts' input [S, D]; rows without a token are zeros."""
    return _spread(x_TxD, self.rows_TxK, self.choices_S // self.rows_TxK.shape[1])

  def collect(self, y_SxD, gates_TxK):
    """For each token the sum of its rows, times their gates: [T, D]."""
    gates_Sx1 = _spread(gates_TxK.reshape(-1, 1), self.rows_TxK.reshape(-1, 1), self.choices_S)
    return _collect(y_SxD * gates_Sx1, self.rows_TxK, self.choices_S // self.rows_TxK.shape[1])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ExpertDispatch:
  """Rows of the experts' input where each expert has chosen as many tokens.

  Attributes:
    tokens_S: int32, the token in each row, T where there is none; the S / E rows of an expert stand together.
  """

  tokens_S: jax.Array
  sizes_E = None

  def spread(self, x_TxD):
    """The experts' input [S, D]; rows without a token are zeros."""
    return jnp.take(x_TxD, self.tokens_S, axis=0, mode='fill', fill_value=0)

  def collect(self, y_SxD, gates_S, num_tokens: int):
    """For each token the sum of its rows, times their gates: [T, D]."""
    empty = jnp.zeros((num_tokens, y_SxD.shape[1]), y_SxD.dtype)
    return empty.at[self.tokens_S].add(y_SxD * gates_S[:, None], mode='drop')


def dropless(experts_TxK, num_experts: int) -> TokenDispatch:
  """Every choice gets a row; S = T K.

  Args:
    experts_TxK: int32; `num_experts` where a token, being padding, has none.
    num_experts: how many there are.
  """
  flat = experts_TxK.reshape(-1)
  order, place, sizes = _sorted(flat, num_experts)
  routed = jnp.sum(sizes)
  rows = jnp.where(place < routed, place, flat.size).reshape(experts_TxK.shape)
  choices = jnp.where(jnp.arange(flat.size) < routed, order, flat.size)
  return TokenDispatch(_kept(rows), _kept(choices), _kept(sizes))


def with_capacity(experts_BxLxK, num_experts: int, capacity: int) -> TokenDispatch:
  """An expert takes the first `capacity` choices of each row of text; S = E B C.

  So what is dropped does not depend on what else is in the batch, nor on later tokens. Arguments as of `dropless`.
  """
  batch, length, k = experts_BxLxK.shape
  flat_BxA = experts_BxLxK.reshape(batch, length * k)
  order_BxA, rank_BxA, sizes_BxE = _ranked(flat_BxA, num_experts)
  start_BxE = jnp.cumsum(sizes_BxE, axis=1) - sizes_BxE
  row_of_text = jnp.arange(batch)[:, None]
  rows = jnp.where(
    (rank_BxA < capacity) & (flat_BxA < num_experts),
    (flat_BxA * batch + row_of_text) * capacity + rank_BxA,
    num_experts * batch * capacity,
  )
  rank_C = jnp.arange(capacity)
  place_BxExC = jnp.minimum(start_BxE[:, :, None] + rank_C, length * k - 1)
  order_BxExC = jnp.take_along_axis(order_BxA, place_BxExC.reshape(batch, -1), axis=1).reshape(place_BxExC.shape)
  choices_BxExC = jnp.where(
    rank_C < sizes_BxE[:, :, None], order_BxExC + row_of_text[:, :, None] * length * k, flat_BxA.size
  )
  choices = choices_BxExC.swapaxes(0, 1).reshape(-1)
  return TokenDispatch(_kept(rows.reshape(-1, k)), _kept(choices), None)


def within_capacity(experts_BxLxK, num_experts: int, capacity: int):
  """The choices that `with_capacity` gives a row to; `num_experts` in place of the others. Arguments as of it."""
  batch = len(experts_BxLxK)
  _, rank_BxA, _ = _ranked(experts_BxLxK.reshape(batch, -1), num_experts)
  return jnp.where(rank_BxA.reshape(experts_BxLxK.shape) < capacity, experts_BxLxK, num_experts)


def by_expert(tokens_BxExC, length: int) -> ExpertDispatch:
  """Each expert has chosen C tokens, int32, of each row of text; S = E B C. Those not in [0, L) are of no token."""
  batch = len(tokens_BxExC)
  tokens = tokens_BxExC + length * jnp.arange(batch)[:, None, None]
  tokens = jnp.where((tokens_BxExC >= 0) & (tokens_BxExC < length), tokens, batch * length)
  return ExpertDispatch(_kept(tokens.swapaxes(0, 1).reshape(-1)))


def _ranked(experts_BxA, num_experts):
  """The order that sorts the choices of each row of text by expert; how many of its expert's come before each; how many
  each expert has."""
  order_BxA, place_BxA, sizes_BxE = jax.vmap(lambda flat: _sorted(flat, num_experts))(experts_BxA)
  start_BxE = jnp.cumsum(sizes_BxE, axis=1) - sizes_BxE
  rank_BxA = place_BxA - jnp.take_along_axis(start_BxE, jnp.minimum(experts_BxA, num_experts - 1), axis=1)
  return order_BxA, rank_BxA, sizes_BxE


def _sorted(experts_A, num_experts):
  """The order that sorts choices by expert, earlier tokens first; where each then stands; how many each expert has."""
  order = jnp.argsort(experts_A, stable=True)
  place = jnp.zeros_like(order).at[order].set(jnp.arange(len(order)), unique_indices=True)
  sizes = jnp.sum(experts_A[:, None] == jnp.arange(num_experts), axis=0)
  return order, place, sizes


def _kept(indices):
  """Kept for the backward pass, which then need not sort again."""
  return checkpoint_name(indices.astype(jnp.int32), 'residual')


# Each of the two is the transpose of the other; left to differentiation it would be a scatter, slow on every device.
@jax.custom_vjp
def _spread(x_TxD, rows_TxK, tokens_S):
  del rows_TxK
  return jnp.take(x_TxD, tokens_S, axis=0, mode='fill', fill_value=0)


@jax.custom_vjp
def _collect(y_SxD, rows_TxK, tokens_S):
  del tokens_S
  return jnp.sum(jnp.take(y_SxD, rows_TxK, axis=0, mode='fill', fill_value=0), axis=1)


_spread.defvjp(
  lambda x, rows, tokens: (_spread(x, rows, tokens), (rows, tokens)),
  lambda where, gradient: (_collect(gradient, *where), None, None),
)
_collect.defvjp(
  lambda y, rows, tokens: (_collect(y, rows, tokens), (rows, tokens)),
  lambda where, gradient: (_spread(gradient, *where), None, None),
)
