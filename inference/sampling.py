"""From logits to the next token: pure functions on float32 `[B, V]`, composed in the order of `process`.

Shapes: B rows, V vocabulary. A discarded token has logit -inf. Every threshold is an array, not a Python constant,
so that another temperature or top-p does not compile again.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Sampling(NamedTuple):
  """How a token is chosen. A field that is None is switched off and costs nothing; all None is greedy decoding."""

  temperature: jax.Array | float | None = None  # None = always the most probable token
  top_k: jax.Array | int | None = None
  top_p: jax.Array | float | None = None
  min_p: jax.Array | float | None = None
  repetition_penalty: jax.Array | float | None = None


def mask_padding(logits_BxV: jax.Array, vocab_size: int) -> jax.Array:
  """Discards the ids from `vocab_size` on: rows that only round the embedding table up, no token has them."""
  return jnp.where(jnp.arange(logits_BxV.shape[-1]) < vocab_size, logits_BxV, -jnp.inf)


def penalize_repetition(logits_BxV: jax.Array, seen_BxV: jax.Array, penalty: jax.Array | float) -> jax.Array:
  """Makes tokens already seen less probable if `penalty` > 1 (Keskar et al. 2019, CTRL, section 4.1).

  As in Hugging Face transformers a negative logit is multiplied, so that the penalty never helps a token.
  """
  penalized_BxV = jnp.where(logits_BxV > 0, logits_BxV / penalty, logits_BxV * penalty)
  return jnp.where(seen_BxV, penalized_BxV, logits_BxV)


def keep_top_k(logits_BxV: jax.Array, top_k: jax.Array | int) -> jax.Array:
  """Keeps the `top_k` largest logits of each row (Fan et al. 2018), and what ties with the last of them."""
  return _keep_largest(logits_BxV, lambda kept_BxV: jnp.sum(kept_BxV, axis=-1, keepdims=True) >= top_k)


def keep_top_p(logits_BxV: jax.Array, top_p: jax.Array | float) -> jax.Array:
  """Keeps the fewest most probable tokens that together have probability `top_p` (Holtzman et al. 2019, nucleus)."""
  probabilities_BxV = jax.nn.softmax(logits_BxV)
  return _keep_largest(
    logits_BxV, lambda kept_BxV: jnp.sum(jnp.where(kept_BxV, probabilities_BxV, 0.0), axis=-1, keepdims=True) >= top_p
  )


def keep_min_p(logits_BxV: jax.Array, min_p: jax.Array | float) -> jax.Array:
  """Keeps tokens at least `min_p` times as probable as the most probable one (Nguyen et al. 2024)."""
  largest_Bx1 = jnp.max(logits_BxV, axis=-1, keepdims=True)
  return jnp.where(logits_BxV >= largest_Bx1 + jnp.log(min_p), logits_BxV, -jnp.inf)


def process(logits_BxV: jax.Array, sampling: Sampling, seen_BxV: jax.Array | None = None) -> jax.Array:
  """Applies what `sampling` switches on, in the order of Hugging Face transformers.

  Args:
    logits_BxV: float32, of the model, ids that are no token already discarded.
    sampling: thresholds.
    seen_BxV: bool, tokens of the prompt and of the text generated so far; used by the repetition penalty only.

  Returns:
    float32 `[B, V]`: unnormalised log-probabilities to sample from.
  """
  if sampling.repetition_penalty is not None:
    logits_BxV = penalize_repetition(logits_BxV, seen_BxV, sampling.repetition_penalty)
  if sampling.temperature is not None:
    logits_BxV = logits_BxV / sampling.temperature
  if sampling.top_k is not None:
    logits_BxV = keep_top_k(logits_BxV, sampling.top_k)
  if sampling.top_p is not None:
    logits_BxV = keep_top_p(logits_BxV, sampling.top_p)
  if sampling.min_p is not None:
    logits_BxV = keep_min_p(logits_BxV, sampling.min_p)
  return logits_BxV


def sample(
  logits_BxV: jax.Array, sampling: Sampling, keys_B: jax.Array, seen_BxV: jax.Array | None = None
) -> jax.Array:
  """Chooses a token for each row.

  Args:
    logits_BxV, sampling, seen_BxV: as for `process`.
    keys_B: a jax.random key a row, so that a row's draw does not depend on the rows beside it; unused when greedy.

  Returns:
    int32 `[B]` token ids.
  """
  logits_BxV = process(logits_BxV, sampling, seen_BxV)
  if sampling.temperature is None:
    return jnp.argmax(logits_BxV, axis=-1).astype(jnp.int32)
  return jax.vmap(jax.random.categorical)(keys_B, logits_BxV).astype(jnp.int32)


def _keep_largest(logits_BxV: jax.Array, enough: Callable[[jax.Array], jax.Array]) -> jax.Array:
  # Bisection over the 2^32 float32 values, in their order as integers: exact, and 18 times faster on a CPU than
  # sorting a vocabulary of 50k. `enough(kept [B, V]) -> [B, 1]` must stay true when more is kept.
  bits = jax.lax.bitcast_convert_type(logits_BxV.astype(jnp.float32), jnp.int32)
  order_BxV = jnp.where(bits < 0, bits ^ jnp.int32(0x7FFFFFFF), bits)

  def halve(_, bounds):
    low, high = bounds
    middle = (low | high) - ((low ^ high) >> 1)  # upper mean, without overflow
    is_enough = enough(order_BxV >= middle)
    return jnp.where(is_enough, middle, low), jnp.where(is_enough, high, jnp.maximum(middle - 1, low))

  lowest, highest = (bound(order_BxV, axis=-1, keepdims=True) for bound in (jnp.min, jnp.max))
  threshold_Bx1, _ = jax.lax.fori_loop(0, 32, halve, (lowest, highest))
  return jnp.where(order_BxV >= threshold_Bx1, logits_BxV, -jnp.inf)
