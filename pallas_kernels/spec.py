"""What an attention call computes: masks, biases and their validation."""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Shapes:
  """Sizes of one attention call: q [batch, q_len, heads, head_dim], k and v [batch, kv_len, kv_heads, head_dim]."""

  batch: int
  q_len: int
  kv_len: int
  heads: int
  kv_heads: int
  head_dim: int


_STATIC = ('scale', 'causal', 'window', 'softcap', 'dropout_rate')
_ARRAYS = (
  'q_segment_ids',
  'kv_segment_ids',
  'q_order',
  'kv_order',
  'alibi_slopes',
  'bias',
  'sinks',
  'dropout_seed',
  'dropout_offset',
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AttentionSpec:
  """Which key each query sees, and what is added to or done with the logits. Every field that is set narrows the mask.

  The logit of query i and key j is softcap(scale q.k) - slope |i - j| + bias; probabilities are its softmax over
  the visible keys and the sink. A query that sees no key gives zeros, an lse of -inf (or its sink), zero gradients.

  Distances and `causal` count indices, the queries being the last q_len of the kv_len tokens; where orders are given,
  the window and the slopes count in orders instead.

  Attributes:
    scale: factor of q.k; None = 1/sqrt(head_dim).
    causal: a query sees no key of a later index.
    window: a query sees keys at a distance below this many tokens (1 = only itself); None = all.
    softcap: logits become softcap * tanh(logits / softcap) (Gemma 2); None = off.
    dropout_rate: share of probabilities zeroed, the others scaled by 1 / (1 - rate); needs `dropout_seed`.
    q_segment_ids: int [batch, q_len], with `kv_segment_ids`: a query sees keys of its own segment; 0 is padding,
      which sees nothing and is seen by nobody.
    kv_segment_ids: int [batch, kv_len].
    q_order: int [batch, q_len], with `kv_order`: a query sees keys with kv_order <= q_order.
    kv_order: int [batch, kv_len].
    alibi_slopes: float [heads] (Press et al. 2021). Differentiable.
    bias: float [batch or 1, heads or 1, q_len or 1, kv_len]. Differentiable.
    sinks: float [heads], logit of an extra key without value (attention sink). Differentiable.
    dropout_seed: int or uint32 scalar; equal seeds drop equal places.
    dropout_offset: int or uint32 [4], the places of this call's first batch row, head, query and key in a larger one of
      which it is a part, so that parts drop what the whole does; None = it is the whole.
  """

  scale: float | None = dataclasses.field(default=None, metadata={'static': True})
  causal: bool = dataclasses.field(default=False, metadata={'static': True})
  window: int | None = dataclasses.field(default=None, metadata={'static': True})
  softcap: float | None = dataclasses.field(default=None, metadata={'static': True})
  dropout_rate: float = dataclasses.field(default=0.0, metadata={'static': True})
  q_segment_ids: jax.Array | None = None
  kv_segment_ids: jax.Array | None = None
  q_order: jax.Array | None = None
  kv_order: jax.Array | None = None
  alibi_slopes: jax.Array | None = None
  bias: jax.Array | None = None
  sinks: jax.Array | None = None
  dropout_seed: jax.Array | None = None
  dropout_offset: jax.Array | None = None


def check(q, k, v, spec: AttentionSpec) -> Shapes:
  """Returns the sizes of the call.

  Raises:
    ValueError: a shape, dtype or field of `spec` is not what AttentionSpec and `attention` describe.
  """
  if q.ndim != 4 or k.ndim != 4 or v.shape != k.shape:
    raise ValueError(
      f'attention takes q [batch, q_len, heads, head_dim] and k, v of one shape [batch, kv_len, kv_heads, head_dim]; '
      f'got q {q.shape}, k {k.shape}, v {v.shape}'
    )
  shapes = Shapes(q.shape[0], q.shape[1], k.shape[1], q.shape[2], k.shape[2], q.shape[3])
  if k.shape[0] != shapes.batch or k.shape[3] != shapes.head_dim:
    raise ValueError(f'q and k must agree in batch and head_dim; got q {q.shape}, k {k.shape}')
  if 0 in q.shape + k.shape:
    raise ValueError(f'attention takes no empty array; got q {q.shape}, k {k.shape}')
  if shapes.heads % shapes.kv_heads:
    raise ValueError(f'kv_heads must divide heads; got {shapes.kv_heads} kv_heads and {shapes.heads} heads')
  if not q.dtype == k.dtype == v.dtype:
    raise ValueError(f'q, k and v must have one dtype; got {q.dtype}, {k.dtype}, {v.dtype}: cast them first')
  _check_static(spec)
  _check_arrays(spec, shapes)
  return shapes


def _check_static(spec):
  if spec.window is not None and spec.window < 1:
    raise ValueError(f'window must be at least 1 (a token sees itself) or None; got {spec.window}')
  if spec.softcap is not None and spec.softcap <= 0:
    raise ValueError(f'softcap must be above 0, or None for off; got {spec.softcap}')
  if not 0 <= spec.dropout_rate < 1:
    raise ValueError(f'dropout_rate must be in [0, 1); got {spec.dropout_rate}')
  if spec.dropout_rate and spec.dropout_seed is None:
    raise ValueError(f'dropout_rate={spec.dropout_rate} needs dropout_seed, an int32 or uint32 scalar')


def _check_arrays(spec, shapes):
  queries, keys, heads = (shapes.batch, shapes.q_len), (shapes.batch, shapes.kv_len), (shapes.heads,)
  expected = {
    'q_segment_ids': queries,
    'kv_segment_ids': keys,
    'q_order': queries,
    'kv_order': keys,
    'alibi_slopes': heads,
    'sinks': heads,
    'dropout_seed': (),
    'dropout_offset': (4,),
  }
  for name, shape in expected.items():
    array = getattr(spec, name)
    if array is not None and jnp.shape(array) != shape:
      raise ValueError(f'{name} must have shape {shape}; got {jnp.shape(array)}')
  for first, second in (('q_segment_ids', 'kv_segment_ids'), ('q_order', 'kv_order')):
    if (getattr(spec, first) is None) != (getattr(spec, second) is None):
      raise ValueError(f'{first} and {second} come together; for self-attention pass the same array as both')
  integers = ('q_segment_ids', 'kv_segment_ids', 'q_order', 'kv_order', 'dropout_seed', 'dropout_offset')
  for name in integers + ('alibi_slopes', 'sinks', 'bias'):
    array = getattr(spec, name)
    kind = jnp.integer if name in integers else jnp.floating
    if array is not None and not jnp.issubdtype(jnp.result_type(array), kind):
      raise ValueError(f'{name} must be of {kind.__name__} dtype; got {jnp.result_type(array)}')
  if spec.bias is not None:
    full = (shapes.batch, shapes.heads, shapes.q_len, shapes.kv_len)
    shape = jnp.shape(spec.bias)
    if len(shape) != 4 or shape[3] != full[3] or any(n not in (1, m) for n, m in zip(shape, full, strict=True)):
      raise ValueError(f'bias must have shape {full}, where each of the first three may be 1; got {shape}')
