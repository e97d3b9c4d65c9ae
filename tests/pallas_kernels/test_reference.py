"""The oracle against the definition written as loops, and against finite differences in float64."""

import math

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest

from pallas_kernels import AttentionSpec, attention


def _definition(q, k, v, spec):
  """One query, head and key at a time, as AttentionSpec's docstring says it."""
  batch, q_len, heads, head_dim = q.shape
  kv_len, groups = k.shape[1], heads // k.shape[2]
  out, lse = np.zeros(q.shape), np.full(q.shape[:3], -np.inf)
  scale = 1 / math.sqrt(head_dim) if spec.scale is None else spec.scale
  for b, i, h in np.ndindex(batch, q_len, heads):
    logits, values = [], []
    for j in range(kv_len):
      at, to = i + kv_len - q_len, j
      visible = not (spec.causal and to > at)
      if spec.q_order is not None:
        at, to = spec.q_order[b, i], spec.kv_order[b, j]
        visible &= to <= at
      if spec.window is not None:
        visible &= abs(at - to) < spec.window
      if spec.q_segment_ids is not None:
        visible &= spec.q_segment_ids[b, i] == spec.kv_segment_ids[b, j] != 0
      if not visible:
        continue
      logit = scale * float(q[b, i, h] @ k[b, j, h // groups])
      if spec.softcap is not None:
        logit = spec.softcap * math.tanh(logit / spec.softcap)
      if spec.alibi_slopes is not None:
        logit -= spec.alibi_slopes[h] * abs(at - to)
      if spec.bias is not None:
        bias = np.broadcast_to(spec.bias, (batch, heads, q_len, kv_len))
        logit += bias[b, h, i, j]
      logits.append(logit)
      values.append(v[b, j, h // groups])
    weights = np.exp(logits)
    total = weights.sum() + (math.exp(spec.sinks[h]) if spec.sinks is not None else 0)
    if total:
      lse[b, i, h] = math.log(total)
    if logits:
      out[b, i, h] = weights @ np.array(values) / total
  return out, lse


def _fields(random, batch, q_len, kv_len, heads):
  ids = lambda length: random.integers(0, 3, (batch, length)).astype(np.int32)
  return {
    'causal': {'causal': True},
    'window': {'window': 3},
    'scale and softcap': {'scale': 0.7, 'softcap': 1.5},
    'segments': {'q_segment_ids': ids(q_len), 'kv_segment_ids': ids(kv_len)},
    'orders': {'q_order': ids(q_len), 'kv_order': ids(kv_len)},
    'orders in a window': {'q_order': ids(q_len), 'kv_order': ids(kv_len), 'window': 2},
    'slopes': {'alibi_slopes': random.uniform(0, 1, heads)},
    'bias': {'bias': random.normal(size=(1, heads, q_len, kv_len))},
    'sinks': {'sinks': random.normal(size=heads)},
  }


@hypothesis.given(seed=st.integers(0, 2**16), names=st.sets(st.integers(0, 8), max_size=4))
@hypothesis.settings(max_examples=25)
def test_reference_is_the_definition(seed, names):
  random = np.random.default_rng(seed)
  fields = list(_fields(random, 2, 5, 6, 4).values())
  with jax.enable_x64(True):
    q, k, v = (random.normal(size=shape) for shape in ((2, 5, 4, 3), (2, 6, 2, 3), (2, 6, 2, 3)))
    spec = AttentionSpec(**{key: value for n in sorted(names) for key, value in fields[n].items()})
    got = attention(*map(jnp.asarray, (q, k, v)), spec, implementation='reference', return_lse=True)
    for one, other in zip(got, _definition(q, k, v, spec), strict=True):
      np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('implementation', ['reference', 'blockwise'])
@pytest.mark.parametrize('name', ['causal', 'scale and softcap', 'segments', 'slopes', 'bias', 'sinks'])
def test_gradients_are_finite_differences_in_float64(implementation, name):
  random = np.random.default_rng(7)
  with jax.enable_x64(True):
    fields = {
      key: jnp.asarray(x) if isinstance(x, np.ndarray) else x for key, x in _fields(random, 1, 3, 4, 2)[name].items()
    }
    learned = {key: fields.pop(key) for key in ('alibi_slopes', 'bias', 'sinks') if key in fields}
    q, k, v = (jnp.asarray(random.normal(size=shape)) for shape in ((1, 3, 2, 2), (1, 4, 1, 2), (1, 4, 1, 2)))

    def loss(q, k, v, learned):
      out, lse = attention(q, k, v, AttentionSpec(**fields, **learned), implementation=implementation, return_lse=True)
      return jnp.sum(jnp.sin(out)) + jnp.sum(jnp.sin(jnp.where(lse > -jnp.inf, lse, 0)))

    jax.test_util.check_grads(jax.jit(loss), (q, k, v, learned), order=1, modes=['rev'], rtol=1e-5, atol=1e-6)
