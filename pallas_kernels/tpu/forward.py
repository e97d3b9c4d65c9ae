"""Forward pass on TPU: one kernel, an online softmax over the visible keys of each block of queries.

Shapes in names as in tile.py.
"""

import jax
import jax.numpy as jnp

from pallas_kernels.tpu.tile import Call, dot, run, walk_queries


def forward(q, k, v, call: Call):
  """Returns the output [B, T, H, D] in q's dtype and lse [B, T, H] in float32."""
  inputs = {'q': call.queries_last(q), 'k': call.keys_first(k), 'v_DxS': call.keys_last(v)}
  batch, heads, head_dim, padded = inputs['q'].shape
  results = run(
    call,
    walk_queries(call),
    _start,
    _step,
    _finish,
    inputs,
    outputs={
      'out': jax.ShapeDtypeStruct(inputs['q'].shape, q.dtype),
      'lse': jax.ShapeDtypeStruct((batch, heads, 1, padded), jnp.float32),
    },
    scratch={'maximum': (1, call.blocks.q), 'total': (1, call.blocks.q), 'out': (head_dim, call.blocks.q)},
  )
  out, lse = (results[name][..., : call.shapes.q_len] for name in ('out', 'lse'))
  return jnp.transpose(out, (0, 3, 1, 2)), jnp.swapaxes(lse[:, :, 0], 1, 2)


def _start(tile, scratch):
  sink = 'sinks' in tile.refs  # a key of logit `sink` and without value, seen first
  scratch['maximum'][...] = jnp.full_like(scratch['maximum'], tile.number('sinks') if sink else -jnp.inf)
  scratch['total'][...] = jnp.full_like(scratch['total'], 1.0 if sink else 0.0)
  scratch['out'][...] = jnp.zeros_like(scratch['out'])


def _step(tile, scratch):
  _, logits_SxT = tile.scores()
  before = scratch['maximum'][...]
  maximum = jnp.maximum(before, jnp.max(logits_SxT, axis=0, keepdims=True))
  finite = jnp.where(maximum > -jnp.inf, maximum, 0)
  p_SxT, shrink = jnp.exp(logits_SxT - finite), jnp.exp(before - finite)
  v_DxS = tile['v_DxS']
  scratch['maximum'][...] = maximum
  scratch['total'][...] = shrink * scratch['total'][...] + jnp.sum(p_SxT, axis=0, keepdims=True)
  scratch['out'][...] = shrink * scratch['out'][...] + dot(v_DxS, tile.keep(p_SxT).astype(v_DxS.dtype))


def _finish(tile, outputs, scratch):
  total = scratch['total'][...]
  sees = total > 0
  scale = 1 / (jnp.where(sees, total, 1) * (1 - tile.call.spec.dropout_rate))
  outputs['out'][...] = (scratch['out'][...] * scale).astype(outputs['out'].dtype)
  outputs['lse'][...] = jnp.where(sees, scratch['maximum'][...] + jnp.log(jnp.where(sees, total, 1)), -jnp.inf)
