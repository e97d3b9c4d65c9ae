"""Whether what was computed on the GPU is right: how far from float32, and how far from call to call."""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels import AttentionSpec, attention

REPEATS = 20  # calls after the first, whose results must be the first's, bit for bit
# ||again - first|| / ||first|| of the one result that may move: TMA adds float32 parts of it in any order, and then a
# number in many is rounded to the next in 16 bits.
MAY_MOVE = {'bfloat16': 0.004, 'float16': 0.0005}
_CHUNK = 1024  # queries whose logits are in memory at once


@functools.partial(jax.jit, static_argnames=('causal', 'scale'))
def definition(q, k, v, cotangent, *, causal: bool, scale: float | None = None) -> dict:
  """Self-attention and its gradients as defined, in float32, for lengths whose logits do not fit in memory.

  Args:
    q: [batch, length, heads, head_dim].
    k, v: [batch, length, kv_heads, head_dim].
    cotangent: of the output, like q.
    causal, scale: as in AttentionSpec.

  Returns:
    Float32 arrays 'out', 'gradient of q', 'gradient of k' and 'gradient of v'.
  """
  q, k, v, cotangent = (x.astype(jnp.float32) for x in (q, k, v, cotangent))
  out, backward = jax.vjp(functools.partial(_in_chunks, causal, scale), q, k, v)
  return named((out, backward(cotangent)))


def _in_chunks(causal, scale, q, k, v):
  batch, length, heads, head_dim = q.shape
  kv_heads, chunk = k.shape[2], math.gcd(length, _CHUNK)
  split = q.reshape(batch, length // chunk, chunk, kv_heads, heads // kv_heads, head_dim)
  by_head = lambda x, axis: jnp.moveaxis(x, axis, 1).reshape(batch * kv_heads, *x.shape[1:axis], *x.shape[axis + 1 :])

  def of_head(inputs):
    q, k, v = inputs

    @jax.checkpoint
    def of_chunk(inputs):
      q, first = inputs
      order = {'q_order': (first + jnp.arange(chunk))[None], 'kv_order': jnp.arange(length)[None]} if causal else {}
      spec = AttentionSpec(scale=scale, **order)
      return attention(q[None], k[None, :, None], v[None, :, None], spec, implementation='reference')[0]

    return lax.map(of_chunk, (q, jnp.arange(0, length, chunk)))

  out = lax.map(of_head, (by_head(split, 3), by_head(k, 2), by_head(v, 2)))
  out = out.reshape(batch, kv_heads, length, heads // kv_heads, head_dim)
  return jnp.moveaxis(out, 1, 2).reshape(q.shape)


def named(result) -> dict:
  """The results of a timed program, the output or it and the gradients of q, k and v, by name."""
  if not isinstance(result, tuple):
    return {'out': result}
  out, gradients = result
  return {'out': out, **{f'gradient of {name}': x for name, x in zip('qkv', gradients, strict=True)}}


def distances(got: dict, want: dict) -> dict:
  """||got - want|| / ||want|| of each of `got`, 0 only if equal; None where it is not finite."""
  return {
    name: float(x) if math.isfinite(x) else None
    for name, x in jax.device_get({name: _distance(got[name], want[name]) for name in got}).items()
  }


@jax.jit
def _distance(got, want):
  got, want = got.astype(jnp.float32), want.astype(jnp.float32)
  return jnp.linalg.norm((got - want).ravel()) / jnp.maximum(jnp.linalg.norm(want.ravel()), 1e-30)


def moved(run, first: dict, repeats: int) -> dict:
  """The largest of the `distances` from the first result in further calls `run() -> dict`."""
  worst = dict.fromkeys(first, 0.0)
  for _ in range(repeats):
    for name, x in distances(run(), first).items():
      worst[name] = None if x is None or worst[name] is None else max(x, worst[name])
  return worst


def faults(distances: dict, tolerances: dict, moved: dict, may_move: dict) -> list[str]:
  """What is wrong, in words; [] where nothing is.

  Args:
    distances: from float32, by the name of the result.
    tolerances: the largest that are right.
    moved: from call to call.
    may_move: the largest that are right; what is not in it must not move.
  """
  show = lambda x: 'not finite' if x is None else f'{x:.1e}'
  far = [
    f'{name} is {show(x)} from float32, at most {tolerances[name]:.1e}'
    for name, x in distances.items()
    if x is None or x > tolerances[name]
  ]
  return far + [
    f'{name} moves by {show(x)} from call to call, at most {may_move.get(name, 0):.1e}'
    for name, x in moved.items()
    if x is None or x > may_move.get(name, 0)
  ]
