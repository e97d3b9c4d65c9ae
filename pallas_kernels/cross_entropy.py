"""Head and cross-entropy in one: the loss of hidden states under a linear head, without [tokens, vocab] in float32."""

import functools
import typing

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from pallas_kernels.deferred import Output, defer
from pallas_kernels.sharding import vary_alike


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


_CHUNK_LOGITS = 1 << 22  # logits of a chunk, 16 MiB of float32, but
_CHUNK_TOKENS = 256  # no fewer tokens than this: each chunk adds a [vocab, embed] gradient to the sum


def linear_cross_entropy(hidden, kernel, labels, *, label_smoothing: float = 0.0, z_loss: float = 0.0) -> CrossEntropy:
  """Cross-entropy of the logits hidden @ kernel.T, a chunk of the length at a time.

  When differentiated, both gradients are formed in the forward pass while a chunk's logits are at hand (Hsu et al.
  2024, Liger Kernel); the backward pass only scales them.

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
  computed = jnp.promote_types(hidden.dtype, jnp.float32)
  outputs = (Output(2, (1, 1), computed), Output(2, labels.shape, computed), Output(2, labels.shape, computed))
  with jax.named_scope('linear_cross_entropy'):
    total, nll, correct = defer(_evaluate, (label_smoothing, z_loss), 1, outputs, hidden, kernel, labels)
    return CrossEntropy(total[0, 0], nll, correct > 0)


def _evaluate(static, hidden, kernel, labels) -> list:
  total, nll, correct = _cross_entropy(*static, hidden, kernel, labels)
  return [total[None, None], nll, correct.astype(nll.dtype)]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _cross_entropy(label_smoothing, z_loss, hidden, kernel, labels):
  kernel = kernel.astype(hidden.dtype)

  def chunk(_, inputs):
    loss, nll, correct, _ = _losses(_logits(kernel, inputs[0]), inputs[1], label_smoothing, z_loss)
    return None, (loss, nll, correct)

  _, outputs = _over_chunks(chunk, None, hidden, labels, kernel.shape[0])
  return _result(*outputs)


def _fwd(label_smoothing, z_loss, hidden, kernel, labels):
  narrow = kernel.astype(hidden.dtype)
  # Behind a barrier XLA does not fold the transpose into the product, a form that is several times slower.
  narrow_DxV = lax.optimization_barrier(narrow.T)

  def chunk(d_kernel, inputs):
    hidden_BxLxD, labels = inputs
    *outputs, d_logits_VxBxL = _losses(_logits(narrow, hidden_BxLxD), labels, label_smoothing, z_loss)
    d_logits_VxBxL = d_logits_VxBxL.astype(hidden.dtype)
    d_hidden_DxBxL = _dot(narrow_DxV, d_logits_VxBxL, (1,), (0,)).astype(hidden.dtype)
    added = _dot(d_logits_VxBxL, hidden_BxLxD, (1, 2), (0, 1))
    return d_kernel + added, (*outputs, jnp.transpose(d_hidden_DxBxL, (1, 2, 0)))

  zeros = vary_alike(jnp.zeros(kernel.shape, jnp.promote_types(hidden.dtype, jnp.float32)), kernel)
  d_kernel, (*outputs, d_hidden) = _over_chunks(chunk, zeros, hidden, labels, kernel.shape[0])
  residuals = tuple(checkpoint_name(x, 'residual') for x in (d_hidden, d_kernel.astype(kernel.dtype)))
  return CrossEntropy(*(checkpoint_name(x, 'residual') for x in _result(*outputs))), residuals


def _bwd(label_smoothing, z_loss, residuals, cotangents):
  del label_smoothing, z_loss
  d_hidden, d_kernel = ((cotangents.total * x).astype(x.dtype) for x in residuals)
  return d_hidden, d_kernel, None


_cross_entropy.defvjp(_fwd, _bwd)


def _result(loss, nll, correct):
  return CrossEntropy(jnp.sum(loss), nll, correct)


def _logits(kernel_VxD, hidden_BxLxD):
  """Logits [vocab, batch, length]: sums over the vocabulary then run over the major axis, which vectorises."""
  return _dot(kernel_VxD, jnp.transpose(hidden_BxLxD, (2, 0, 1)), (1,), (0,))


def _dot(a, b, contract_a, contract_b):
  computed = jnp.promote_types(a.dtype, jnp.float32)
  return lax.dot_general(a, b, ((contract_a, contract_b), ((), ())), preferred_element_type=computed)


def _losses(logits_VxBxL, labels, label_smoothing, z_loss):
  """Returns each token's loss, nll, whether it is correct, and the gradient of the loss in the logits."""
  vocab, dtype = logits_VxBxL.shape[0], logits_VxBxL.dtype
  counted = labels >= 0
  labels = jnp.where(counted, labels, 0)  # an ignored label must not index out of bounds: its NaN outlives any mask
  maximum = jnp.max(logits_VxBxL, axis=0)
  exponentials_VxBxL = jnp.exp(logits_VxBxL - maximum)
  total = jnp.sum(exponentials_VxBxL, axis=0)
  lse = maximum + jnp.log(total)
  nll = lse - jnp.take_along_axis(logits_VxBxL, labels[None], axis=0)[0]
  loss = nll + z_loss * lse**2
  if label_smoothing:
    loss += label_smoothing * (lse - jnp.mean(logits_VxBxL, axis=0) - nll)
  weight = jnp.where(counted, 1 + 2 * z_loss * lse, 0) / total
  is_label_VxBxL = lax.broadcasted_iota(labels.dtype, logits_VxBxL.shape, 0) == labels
  target_VxBxL = jnp.where(is_label_VxBxL, 1 - label_smoothing, 0.0).astype(dtype) + label_smoothing / vocab
  d_logits_VxBxL = weight * exponentials_VxBxL - jnp.where(counted, target_VxBxL, 0)
  correct = _argmax(logits_VxBxL, maximum) == labels
  return jnp.where(counted, loss, 0), jnp.where(counted, nll, 0), correct & counted, d_logits_VxBxL


def _argmax(logits_VxBxL, maximum):
  """First index of the maximum; as a floating-point minimum it vectorises, which jnp.argmax does not (30x slower)."""
  vocab = logits_VxBxL.shape[0]
  index = lax.broadcasted_iota(jnp.float32, logits_VxBxL.shape, 0)  # exact up to 2^24
  return jnp.min(jnp.where(logits_VxBxL == maximum, index, vocab), axis=0).astype(jnp.int32)


def _over_chunks(body, carry, hidden, labels, vocab):
  """Runs `body` over chunks of the length axis; returns the carry and the outputs joined to [batch, length, ...]."""
  batch, length = labels.shape
  size = max(_CHUNK_LOGITS // (batch * vocab), -(-_CHUNK_TOKENS // batch))
  chunks = -(-length // size)
  if chunks <= 1:
    return body(carry, (hidden, labels))
  size = -(-length // chunks)
  extra = chunks * size - length
  if extra:
    hidden = jnp.pad(hidden, ((0, 0), (0, extra), (0, 0)))
    labels = jnp.pad(labels, ((0, 0), (0, extra)), constant_values=-1)

  def split(x):
    return jnp.moveaxis(x.reshape(batch, chunks, size, *x.shape[2:]), 1, 0)

  def join(x):
    return jnp.moveaxis(x, 0, 1).reshape(batch, chunks * size, *x.shape[3:])[:, :length]

  carry, outputs = lax.scan(body, carry, (split(hidden), split(labels)))
  return carry, jax.tree.map(join, outputs)
