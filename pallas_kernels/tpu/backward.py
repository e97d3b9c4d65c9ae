"""Backward pass on TPU, from probabilities computed again: kernels for d_q, for d_k and d_v, and for the bias.

Each is a call of its own, so that one whose result nobody uses is left out by the compiler. Shapes in names as in
tile.py.
"""

import jax.numpy as jnp

from pallas_kernels.tpu.tile import Call, dot, run, walk_bias, walk_keys, walk_queries


def backward(q, k, v, d_out, lse, d_row, call: Call):
  """Returns the gradients of q, k and v, and a dict of those of the spec's slopes and bias where it has them.

  Args:
    q: [B, T, H, D].
    k: [B, S, N, D].
    v: as k.
    d_out: gradient of the output, as q.
    lse: [B, T, H], inf for queries that see nothing.
    d_row: [B, T, H], what a gradient of the output and of lse takes off every logit's.
    call: sizes and masks.
  """
  rows = lambda x, value: call.pad(jnp.swapaxes(x, 1, 2)[:, :, None], q=3, value=value)
  inputs = {
    'q': call.queries_last(q),
    'd_out': call.queries_last(d_out),
    'k': call.keys_first(k),
    'v': call.keys_first(v),
    'lse': rows(lse, jnp.inf),
    'd_row': rows(d_row, 0),
  }
  d_q, learned = _queries(call, inputs, call.keys_last(k))
  d_k, d_v = _keys(call, inputs)
  if call.spec.bias is not None:
    learned['bias'] = _bias(call, inputs)
  return d_q, d_k, d_v, learned


def _probabilities(tile):
  """Returns the probabilities and the gradients of logits and of scores, [S, T]."""
  spec = tile.call.spec
  capped_SxT, logits_SxT = tile.scores()
  p_SxT = jnp.exp(logits_SxT - tile['lse'])
  d_p_SxT = tile.keep(dot(tile['v'], tile['d_out']) * (1 / (1 - spec.dropout_rate)))
  d_logits_SxT = p_SxT * (d_p_SxT - tile['d_row'])
  d_capped_SxT = (
    d_logits_SxT if spec.softcap is None else (d_logits_SxT * (1 - jnp.square(capped_SxT * (1 / spec.softcap))))
  )
  return p_SxT, d_logits_SxT, spec.scale * d_capped_SxT


def _start(tile, scratch):
  for ref in scratch.values():
    ref[...] = jnp.zeros_like(ref)


def _finish(tile, outputs, scratch):
  for name, ref in outputs.items():
    ref[...] = scratch[name][...].astype(ref.dtype)


def _queries(call, inputs, k_BxNxDxS):
  def step(tile, scratch):
    _, d_logits_SxT, d_scores_SxT = _probabilities(tile)
    k_DxS = tile['k_DxS']
    scratch['d_q'][...] += dot(k_DxS, d_scores_SxT.astype(k_DxS.dtype))
    if 'd_slope' in scratch:
      scratch['d_slope'][...] -= jnp.sum(d_logits_SxT * tile.distance().astype(jnp.float32), axis=0, keepdims=True)

  outputs = {'d_q': inputs['q']}
  if call.spec.alibi_slopes is not None:
    outputs['d_slope'] = inputs['lse']
  scratch = {name: (x.shape[2], call.blocks.q) for name, x in outputs.items()}
  results = run(call, walk_queries(call), _start, step, _finish, inputs | {'k_DxS': k_BxNxDxS}, outputs, scratch)
  d_q = jnp.transpose(results['d_q'][..., : call.shapes.q_len], (0, 3, 1, 2))
  if call.spec.alibi_slopes is None:
    return d_q, {}
  return d_q, {'alibi_slopes': jnp.sum(results['d_slope'], axis=(0, 2, 3))}


def _keys(call, inputs):
  def step(tile, scratch):
    p_SxT, _, d_scores_SxT = _probabilities(tile)
    q_DxT, d_out_DxT = tile['q'], tile['d_out']
    scratch['d_k'][...] += dot(d_scores_SxT.astype(q_DxT.dtype), q_DxT, contract_b=1)
    scratch['d_v'][...] += dot(tile.keep(p_SxT).astype(q_DxT.dtype), d_out_DxT, contract_b=1)

  def finish(tile, outputs, scratch):
    outputs['d_k'][...] = scratch['d_k'][...].astype(outputs['d_k'].dtype)
    kept = 1 / (1 - tile.call.spec.dropout_rate)
    outputs['d_v'][...] = (scratch['d_v'][...] * kept).astype(outputs['d_v'].dtype)

  outputs = {'d_k': inputs['k'], 'd_v': inputs['v']}
  scratch = dict.fromkeys(outputs, (call.blocks.k, call.shapes.head_dim))
  results = run(call, walk_keys(call), _start, step, finish, inputs, outputs, scratch)
  return (jnp.swapaxes(results[name][:, :, : call.shapes.kv_len], 1, 2) for name in ('d_k', 'd_v'))


def _bias(call, inputs):
  """The gradient in the bias's own shape."""
  shared = call.spec.bias.shape[2] == 1

  def step(tile, scratch):
    _, d_logits_SxT, _ = _probabilities(tile)
    scratch['d_bias'][...] += jnp.sum(d_logits_SxT, axis=1, keepdims=True) if shared else d_logits_SxT

  def finish(tile, outputs, scratch):
    outputs['d_bias'][...] = scratch['d_bias'][...].T.astype(outputs['d_bias'].dtype)

  outputs = {'d_bias': call.arrays()['bias']}
  scratch = {'d_bias': (call.blocks.k, 1 if shared else call.blocks.q)}
  d_bias = run(call, walk_bias(call), _start, step, finish, inputs, outputs, scratch)['d_bias']
  return d_bias[:, :, : call.shapes.q_len, : call.shapes.kv_len]
