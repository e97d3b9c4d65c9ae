"""Head and cross-entropy in one: the loss of hidden states under a linear head, without [tokens, vocab] in float32."""

import dataclasses
import functools
import typing

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.deferred import Output, defer, residuals
from pallas_kernels.device import current
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


class _Chunk(typing.NamedTuple):
  logits: int  # of a chunk, in float32, but
  tokens: int  # no fewer tokens than this: each chunk adds a [vocab, embed] gradient to the sum


# On a CPU a chunk should stay in its cache; elsewhere it should keep the whole device busy and fit its memory.
_CHUNKS = {'cpu': _Chunk(1 << 22, 256), 'gpu': _Chunk(1 << 28, 1024), 'tpu': _Chunk(1 << 27, 1024)}


@dataclasses.dataclass(frozen=True)
class _Terms:
  softcap: float | None
  label_smoothing: float
  z_loss: float
  vocab_axes: tuple[str, ...]
  embed_axes: tuple[str, ...]
  chunk: _Chunk


def linear_cross_entropy(
  hidden,
  kernel,
  labels,
  bias=None,
  *,
  softcap: float | None = None,
  label_smoothing: float = 0.0,
  z_loss: float = 0.0,
  axis_name=None,
  embed_axis_name=None,
) -> CrossEntropy:
  """Cross-entropy of the logits hidden @ kernel.T + bias, a chunk of the length at a time.

  When differentiated, all gradients are formed in the forward pass while a chunk's logits are at hand (Hsu et al.
  2024, Liger Kernel); the backward pass only scales them.

  Over several devices it belongs inside `jax.shard_map`, each device with its own tokens: the gradient of the kernel is
  then summed on each device and reduced over them once, after the last chunk. The axis names are those of the mesh that
  split the kernel. A vocabulary in parts (Shoeybi et al. 2019, Megatron-LM, section 3) costs two reductions of a few
  numbers a token in each chunk.

  Args:
    hidden: [batch, length, embed]. Matrix products take operands of its dtype and accumulate in float32.
    kernel: [vocab, embed], any floating dtype; its gradient has the same.
    labels: integer [batch, length]; negative = ignored.
    bias: [vocab], any floating dtype; or None.
    softcap: logits become softcap * tanh(logits / softcap) (Gemma 2); None = off.
    label_smoothing: probability spread evenly over the vocabulary (Szegedy et al. 2016), in [0, 1).
    z_loss: weight of log(Z)^2 (PaLM, Chowdhery et al. 2022).
    axis_name: mesh axis, or several, over which `kernel` and `bias` hold equal parts of the vocabulary, in order;
      hidden and labels are the same on all of them, and so is the result.
    embed_axis_name: mesh axis, or several, over which `kernel` holds equal parts of embed, in order: it is gathered
      once before the first chunk, in hidden's dtype, and its gradient is summed and scattered once after the last.

  Raises:
    ValueError: shapes, dtypes, softcap or label_smoothing are not as above.
  """
  axes = _names(axis_name), _names(embed_axis_name)
  terms = _Terms(softcap, label_smoothing, z_loss, *axes, _CHUNKS[current().platform])
  _check(hidden, kernel, labels, bias, terms)
  computed = jnp.promote_types(hidden.dtype, jnp.float32)
  output = functools.partial(Output, 2, dtype=computed, equal_over=terms.vocab_axes)
  with jax.named_scope('linear_cross_entropy'):
    outputs = output((1, 1)), output(labels.shape), output(labels.shape)
    total, nll, correct = defer(_evaluate, (terms,), 1, outputs, hidden, kernel, labels, bias)
    return CrossEntropy(total[0, 0], nll, correct > 0)


def _names(axis_name) -> tuple[str, ...]:
  return (axis_name,) if isinstance(axis_name, str) else tuple(axis_name or ())


def _check(hidden, kernel, labels, bias, terms):
  parts = lax.axis_size(terms.embed_axes) if terms.embed_axes else 1
  if (
    hidden.ndim != 3
    or kernel.ndim != 2
    or hidden.shape[2] != parts * kernel.shape[1]
    or labels.shape != hidden.shape[:2]
  ):
    raise ValueError(
      'linear_cross_entropy takes hidden [batch, length, embed], kernel [vocab, embed] and labels [batch, length]; '
      f'got {hidden.shape}, {kernel.shape}, {labels.shape}' + (f', the kernel in {parts} parts' if parts > 1 else '')
    )
  if not jnp.issubdtype(labels.dtype, jnp.integer):
    raise ValueError(f'labels must be integers; got {labels.dtype}')
  if bias is not None and bias.shape != kernel.shape[:1]:
    raise ValueError(f'bias must have shape {kernel.shape[:1]}, one number a row of the kernel; got {bias.shape}')
  if terms.softcap is not None and terms.softcap <= 0:
    raise ValueError(f'softcap must be above 0, or None for off; got {terms.softcap}')
  if not 0 <= terms.label_smoothing < 1:
    raise ValueError(f'label_smoothing must be in [0, 1); got {terms.label_smoothing}')


def _evaluate(static, hidden, kernel, labels, bias) -> list:
  (terms,) = static
  total, nll, correct = _cross_entropy(terms, *vary_alike((hidden, kernel, labels, bias)))
  return [total[None, None], nll, correct.astype(nll.dtype)]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cross_entropy(terms, hidden, kernel, labels, bias):
  kernel = _whole(terms, kernel.astype(hidden.dtype))

  def chunk(_, inputs):
    loss, nll, correct, _ = _losses(_logits(kernel, bias, inputs[0], terms), inputs[1], terms)
    return None, (loss, nll, correct)

  _, outputs = _over_chunks(chunk, None, hidden, labels, kernel.shape[0], terms.chunk)
  return _result(*outputs)


def _fwd(terms, hidden, kernel, labels, bias):
  narrow = _whole(terms, kernel.astype(hidden.dtype))
  # Behind a barrier XLA does not fold the transpose into the product, a form that is several times slower.
  narrow_DxV = lax.optimization_barrier(narrow.T)

  def chunk(sums, inputs):
    hidden_BxLxD, labels = inputs
    logits_VxBxL = _logits(narrow, bias, hidden_BxLxD, terms)
    *outputs, d_logits_VxBxL = _losses(logits_VxBxL, labels, terms)
    if terms.softcap is not None:
      d_logits_VxBxL *= 1 - jnp.square(logits_VxBxL / terms.softcap)
    d_bias = None if bias is None else jnp.sum(d_logits_VxBxL, axis=(1, 2))
    d_logits_VxBxL = d_logits_VxBxL.astype(hidden.dtype)
    d_hidden_DxBxL = _dot(narrow_DxV, d_logits_VxBxL, (1,), (0,)).astype(hidden.dtype)
    added = _dot(d_logits_VxBxL, hidden_BxLxD, (1, 2), (0, 1)), d_bias
    return jax.tree.map(jnp.add, sums, added), (*outputs, jnp.transpose(d_hidden_DxBxL, (1, 2, 0)))

  computed = jnp.promote_types(hidden.dtype, jnp.float32)
  zeros = jnp.zeros(narrow.shape, computed), None if bias is None else jnp.zeros(bias.shape, computed)
  sums, (*outputs, d_hidden) = _over_chunks(
    chunk, vary_alike(zeros, kernel), hidden, labels, narrow.shape[0], terms.chunk
  )
  d_kernel, d_bias = sums
  if terms.embed_axes:
    d_kernel = lax.psum_scatter(d_kernel, terms.embed_axes, scatter_dimension=1, tiled=True)
  gradients = residuals(d_hidden, d_kernel.astype(kernel.dtype), *(() if bias is None else [d_bias.astype(bias.dtype)]))
  return CrossEntropy(*residuals(*_result(*outputs))), gradients


def _bwd(terms, gradients, cotangents):
  del terms
  d_hidden, d_kernel, *d_bias = ((cotangents.total * x).astype(x.dtype) for x in gradients)
  return d_hidden, d_kernel, None, *(d_bias or [None])


_cross_entropy.defvjp(_fwd, _bwd)


def _whole(terms, kernel):
  if not terms.embed_axes:
    return kernel
  return lax.all_gather(kernel, terms.embed_axes, axis=1, tiled=True)


def _result(loss, nll, correct):
  return CrossEntropy(jnp.sum(loss), nll, correct)


def _logits(kernel_VxD, bias, hidden_BxLxD, terms):
  """Logits [vocab, batch, length]: sums over the vocabulary then run over the major axis, which vectorises."""
  logits = _dot(kernel_VxD, jnp.transpose(hidden_BxLxD, (2, 0, 1)), (1,), (0,))
  if bias is not None:
    logits += bias[:, None, None].astype(logits.dtype)
  return logits if terms.softcap is None else terms.softcap * jnp.tanh(logits / terms.softcap)


def _dot(a, b, contract_a, contract_b):
  computed = jnp.promote_types(a.dtype, jnp.float32)
  return lax.dot_general(a, b, ((contract_a, contract_b), ((), ())), preferred_element_type=computed)


def _losses(logits_VxBxL, labels, terms):
  """Returns each token's loss, nll, whether it is correct, and the gradient of the loss in these logits.

  Logits of one part of the vocabulary give the same losses as those of all of it: what they need of the other parts is
  reduced over `terms.vocab_axes`.
  """
  axes, (part, *_), dtype = terms.vocab_axes, logits_VxBxL.shape, logits_VxBxL.dtype
  vocab = part * lax.axis_size(axes) if axes else part
  first = part * lax.axis_index(axes) if axes else 0
  counted = labels >= 0
  labels = jnp.where(counted, labels, 0) - first  # an ignored one must not be out of bounds: its NaN outlives any mask
  index_VxBxL = lax.broadcasted_iota(labels.dtype, logits_VxBxL.shape, 0)
  maximum = jnp.max(logits_VxBxL, axis=0)
  maximum = lax.pmax(maximum, axes) if axes else maximum
  exponentials_VxBxL = jnp.exp(logits_VxBxL - maximum)
  # Predicted is the first of the largest logits. As a sum of floats it vectorises, which jnp.argmax does not (30 times
  # slower).
  before_VxBxL = (logits_VxBxL == maximum) & (index_VxBxL < labels)
  sums = [
    jnp.sum(exponentials_VxBxL, axis=0),
    _label_logit(logits_VxBxL, labels, first + part == vocab),
    jnp.sum(before_VxBxL.astype(dtype), axis=0),
  ]
  if terms.label_smoothing:
    sums.append(jnp.sum(logits_VxBxL, axis=0))
  if axes:
    # Labels come typed as differing between parts; a sum is known to be equal.
    *sums, counting = lax.psum(jnp.stack([*sums, counted.astype(dtype)]), axes)
    counted = counting > 0
  total, label_logit, before, *rest = sums
  lse = maximum + jnp.log(total)
  nll = lse - label_logit
  loss = nll + terms.z_loss * lse**2
  if terms.label_smoothing:
    loss += terms.label_smoothing * (lse - rest[0] / vocab - nll)
  weight = jnp.where(counted, 1 + 2 * terms.z_loss * lse, 0) / total
  target_VxBxL = jnp.where(index_VxBxL == labels, 1 - terms.label_smoothing, 0.0).astype(dtype)
  target_VxBxL += terms.label_smoothing / vocab
  d_logits_VxBxL = weight * exponentials_VxBxL - jnp.where(counted, target_VxBxL, 0)
  correct = (label_logit == maximum) & (before == 0) & counted
  return jnp.where(counted, loss, 0), jnp.where(counted, nll, 0), correct, d_logits_VxBxL


def _label_logit(logits_VxBxL, labels, is_last):
  """The logit of each label that lies in this part of the vocabulary, else 0; NaN for one that lies in none."""
  found = jnp.take_along_axis(logits_VxBxL, labels[None], axis=0)[0]
  return jnp.where((labels >= 0) & ((labels < logits_VxBxL.shape[0]) | is_last), found, 0)


def _over_chunks(body, carry, hidden, labels, vocab, chunk):
  """Runs `body` over chunks of the length axis; returns the carry and the outputs joined to [batch, length, ...]."""
  batch, length = labels.shape
  size = max(chunk.logits // (batch * vocab), -(-chunk.tokens // batch))
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
