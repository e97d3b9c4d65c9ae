"""Head and cross-entropy in one: the loss of hidden states under a linear head, without [tokens, vocab] in float32."""

import functools
import typing

import jax
import jax.numpy as jnp
from jax import lax


class CrossEntropy(typing.NamedTuple):
  """Losses of counted tokens.

  Attributes:
    total: float32 scalar, sum over counted tokens of the smoothed loss plus the z-loss, in nats. Differentiable.
    nll: float32 [batch, length], -log p(label) without smoothing or z-loss; 0 where ignored. No gradient.
    correct: bool [batch, length], the label has the largest logit; False where ignored. No gradient.
  """

  total: jax.Array
  nll: jax.Array
  correct: jax.Array


_CHUNK_LOGITS = 1 << 23  # logits held at once: 32 MiB of float32


def linear_cross_entropy(hidden, kernel, labels, *, label_smoothing: float = 0.0, z_loss: float = 0.0) -> CrossEntropy:
  """Cross-entropy of the logits hidden @ kernel.T, a chunk of the length at a time.

  When differentiated, both gradients are formed in the forward pass while a chunk's logits are at hand (Hsu et al. 2024,
  Liger Kernel); the backward pass only scales them.

  Args:
    hidden: [batch, length, embed]. Matrix products take operands of its dtype and accumulate in float32.
    kernel: [vocab, embed], any floating dtype; its gradient has the same.
    labels: integer [batch, length]; negative = ignored.
    label_smoothing: probability spread evenly over the vocabulary (Szegedy et al. 2016), in [0, 1).
    z_loss: weight of log(Z)^2 (PaLM, Chowdhery et al. 2022).

  Raises:
    ValueError: shapes, dtypes or label_smoothing are not as above.
  """
  if hidden.ndim != 3 or kernel.ndim != 2 or hidden.shape[2] != kernel.shape[1] or labels.shape != hidden.shape[:2]:
    raise ValueError(
      'linear_cross_entropy takes hidden [batch, length, embed], kernel [vocab, embed] and labels [batch, length]; '
      f'got {hidden.shape}, {kernel.shape}, {labels.shape}'
    )
  if not jnp.issubdtype(labels.dtype, jnp.integer):
    raise ValueError(f'labels must be integers; got {labels.dtype}')
  if not 0 <= label_smoothing < 1:
    raise ValueError(f'label_smoothing must be in [0, 1); got {label_smoothing}')
  with jax.named_scope('linear_cross_entropy'):
    return _cross_entropy(label_smoothing, z_loss, hidden, kernel, labels)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _cross_entropy(label_smoothing, z_loss, hidden, kernel, labels):
  kernel = kernel.astype(hidden.dtype)
  def chunk(_, inputs):
    return None, _losses(_logits(inputs[0], kernel), inputs[1], label_smoothing, z_loss)[:3]
  _, outputs = _scan_chunks(chunk, None, hidden, labels, kernel.shape[0])
  return _result(*outputs)


def _fwd(label_smoothing, z_loss, hidden, kernel, labels):
  narrow = kernel.astype(hidden.dtype)

  def chunk(d_kernel, inputs):
    hidden, labels = inputs
    *outputs, d_logits = _losses(_logits(hidden, narrow), labels, label_smoothing, z_loss)
    d_logits = d_logits.astype(hidden.dtype)
    accumulated = d_kernel.dtype
    d_hidden = lax.dot_general(d_logits, narrow, (((2,), (0,)), ((), ())), preferred_element_type=accumulated)
    d_kernel += lax.dot_general(d_logits, hidden, (((0, 1), (0, 1)), ((), ())), preferred_element_type=accumulated)
    return d_kernel, (*outputs, d_hidden.astype(hidden.dtype))

  zeros = jnp.zeros(kernel.shape, jnp.promote_types(hidden.dtype, jnp.float32))
  d_kernel, (*outputs, d_hidden) = _scan_chunks(chunk, zeros, hidden, labels, kernel.shape[0])
  return _result(*outputs), (d_hidden, d_kernel.astype(kernel.dtype))


def _bwd(label_smoothing, z_loss, residuals, cotangents):
  del label_smoothing, z_loss
  scale = cotangents.total
  return *((scale * x).astype(x.dtype) for x in residuals), None


_cross_entropy.defvjp(_fwd, _bwd)


def _result(loss, nll, correct):
  return CrossEntropy(jnp.sum(loss), nll, correct)


def _logits(hidden, kernel):
  computed = jnp.promote_types(hidden.dtype, jnp.float32)
  return lax.dot_general(hidden, kernel, (((2,), (1,)), ((), ())), preferred_element_type=computed)


def _losses(logits, labels, label_smoothing, z_loss):
  """Returns each token's loss, nll, whether it is correct, and the gradient of the loss in the logits."""
  vocab = logits.shape[-1]
  counted = labels >= 0
  labels = jnp.maximum(labels, 0)[..., None]
  maximum = jnp.max(logits, axis=-1, keepdims=True)
  exponentials = jnp.exp(logits - maximum)
  total = jnp.sum(exponentials, axis=-1, keepdims=True)
  lse = (maximum + jnp.log(total))[..., 0]
  nll = lse - jnp.take_along_axis(logits, labels, axis=-1)[..., 0]
  loss = nll + z_loss * lse**2
  if label_smoothing:
    loss += label_smoothing * (lse - jnp.mean(logits, axis=-1) - nll)
  correct = jnp.argmax(logits, axis=-1) == labels[..., 0]
  weight = jnp.where(counted, 1 + 2 * z_loss * lse, 0)[..., None] / total
  target = jnp.where(lax.broadcasted_iota(labels.dtype, (1, 1, vocab), 2) == labels, 1 - label_smoothing, 0.0)
  d_logits = weight * exponentials - jnp.where(counted[..., None], target + label_smoothing / vocab, 0)
  zero = jnp.zeros((), logits.dtype)
  return jnp.where(counted, loss, zero), jnp.where(counted, nll, zero), correct & counted, d_logits


def _scan_chunks(body, carry, hidden, labels, vocab):
  """Runs `body` over chunks of the length axis; returns the carry and outputs [batch, length, ...]."""
  batch, length = labels.shape
  size = min(length, max(1, _CHUNK_LOGITS // (batch * vocab)))
  chunks = -(-length // size)
  if chunks == 1:
    return body(carry, (hidden, labels))
  size = -(-length // chunks)
  extra = chunks * size - length
  hidden = jnp.pad(hidden, ((0, 0), (0, extra), (0, 0)))
  labels = jnp.pad(labels, ((0, 0), (0, extra)), constant_values=-1)
  split = [jnp.moveaxis(x.reshape(batch, chunks, size, *x.shape[2:]), 1, 0) for x in (hidden, labels)]
  carry, outputs = lax.scan(body, carry, tuple(split))
  def join(x):
    return jnp.moveaxis(x, 0, 1).reshape(batch, chunks * size, *x.shape[3:])[:, :length]
  return carry, jax.tree.map(join, outputs)
