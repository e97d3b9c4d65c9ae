"""Ring and all-to-all attention on simulated devices against attention to all tokens on one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from model.relative import Distances
from pallas_kernels import AttentionSpec, attention, attention_across
from parallel import zigzag
from parallel.collectives import collectives
from parallel.head_exchange import AllToAll
from parallel.ring import Ring

NAMES = ('sequence',)
B, L, H, G, K = 2, 48, 4, 2, 8
TOKENS, WHOLE = PartitionSpec(None, *NAMES), PartitionSpec()


def normal(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape)


def devices(number):
  return Mesh(np.array(jax.devices()[:number]), NAMES)


def specs(spec):
  """How the arrays of a spec are split: what is said of tokens is whole, but for the queries of a bias."""
  arrays = [field.name for field in dataclasses.fields(spec) if not field.metadata.get('static')]
  rows = PartitionSpec(None, None, *NAMES) if spec.bias is not None and spec.bias.shape[2] > 1 else WHOLE
  return dataclasses.replace(spec, **(dict.fromkeys(arrays, WHOLE) | {'bias': rows}))


def across(exchange, number, implementation='blockwise', return_lse=True):
  def on_device(*inputs):
    return attention_across(exchange(NAMES), *inputs, implementation=implementation, return_lse=return_lse)

  def call(q, k, v, spec, distances):
    in_specs = (TOKENS,) * 3 + (specs(spec), WHOLE)
    on_devices = jax.shard_map(on_device, mesh=devices(number), in_specs=in_specs, out_specs=TOKENS)
    return on_devices(q, k, v, spec, distances)

  return call


def alone(q, k, v, spec, distances):
  if distances is not None:
    spec = dataclasses.replace(spec, bias=distances.bias(q.shape[1], k.shape[1], 0))
  return attention(q, k, v, spec, implementation='reference', return_lse=True)


def gradient(call):
  def loss(*inputs):
    out, lse = call(*inputs)
    return jnp.sum(jnp.sin(out)) + jnp.sum(jnp.cos(jnp.where(lse == -jnp.inf, 0, lse))), (out, lse)

  return jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3, 4), has_aux=True, allow_int=True))


def packed(seed=9, documents=4):
  """Documents one after the other, padding at the end."""
  ids = jnp.sort(jax.random.randint(jax.random.key(seed), (B, L), 1, documents + 1))
  return jnp.where(jnp.arange(L) < L - 5, ids, 0)


def of_both(name, values):
  return {f'q_{name}': values, f'kv_{name}': values}


def prefix():
  return jnp.maximum(jnp.arange(L) - jnp.asarray([[30], [7]]), 0)


def permutation():
  return jax.vmap(lambda key: jax.random.permutation(key, L))(jax.random.split(jax.random.key(3), B))


DROPOUT = {'dropout_rate': 0.3, 'dropout_seed': jnp.uint32(3)}
SLOPES = jnp.asarray([0.5, 0.25, 0.1, 0.02])
CASES = {
  'all at once': {
    'causal': True,
    'softcap': 2.0,
    'sinks': normal(8, H),
    'alibi_slopes': SLOPES,
    **of_both('segment_ids', packed()),
    **DROPOUT,
  },
  'causal': {'causal': True},
  'bidirectional': {},
  'packed': {'causal': True, **of_both('segment_ids', packed())},
  'packed, both sides': of_both('segment_ids', packed()),
  'prefix': {**of_both('order', prefix()), **of_both('segment_ids', packed(documents=1))},
  'permutation': of_both('order', permutation()),
  'window': {'causal': True, 'window': 7, **of_both('segment_ids', packed())},
  'window of one': {'causal': True, 'window': 1},
  'wide window with slopes': {'causal': True, 'window': 31, 'alibi_slopes': SLOPES, **DROPOUT},
  'sinks': {'sinks': normal(8, H), **of_both('segment_ids', packed())},
  'bias of pairs': {'bias': normal(6, B, H, L, L), **DROPOUT},
  'bias of heads': {'causal': True, 'bias': normal(6, 1, H, 1, L)},
  'bias for all heads': {'bias': normal(6, B, 1, L, L)},
}
BOTH_SIDES = {'window to both sides': {'window': 7}, 'slopes to both sides': {'alibi_slopes': SLOPES}}
DISTANCES = Distances(normal(5, 8, H), 8, 20, False)


def compare(exchange, number, fields, distances=None, kv_heads=G, keys=L):
  q, k, v = normal(0, B, L, H, K), normal(1, B, keys, kv_heads, K), normal(2, B, keys, kv_heads, K)
  inputs = q, k, v, AttentionSpec(**fields), distances
  got, expected = (gradient(call)(*inputs) for call in (across(exchange, number), alone))
  for (path, one), other in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(expected), strict=True):
    if jnp.issubdtype(one.dtype, jnp.floating):
      finite = np.where(np.isfinite(other), other, 0)
      error = np.linalg.norm(np.where(np.isfinite(one), one, 0) - finite)
      assert error <= 2e-5 * np.linalg.norm(finite) + 1e-6, (jax.tree_util.keystr(path), error)


def slow_but(quick, names):
  return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize('name', slow_but(('all at once',), CASES))
def test_a_ring_is_attention_to_all_tokens(name):
  compare(Ring, 4, CASES[name])


@pytest.mark.parametrize('name', slow_but(('all at once',), CASES | BOTH_SIDES))
def test_all_to_all_is_attention_to_all_tokens(name):
  compare(AllToAll, 2, (CASES | BOTH_SIDES)[name])


@pytest.mark.slow
@pytest.mark.parametrize('exchange', [Ring, AllToAll])
@pytest.mark.parametrize('causal', [True, False])
def test_a_bias_by_distance_is_never_laid_out_for_all_pairs(exchange, causal):
  distances = dataclasses.replace(DISTANCES, bidirectional=not causal)
  compare(exchange, 4, {'causal': causal, **of_both('segment_ids', packed())}, distances)


@pytest.mark.slow
@pytest.mark.parametrize('number', [2, 8])
def test_on_any_number_of_devices(number):
  compare(Ring, number, {'causal': True, **DROPOUT})


@pytest.mark.slow
@pytest.mark.parametrize('exchange', [Ring, AllToAll])
def test_keys_of_another_length(exchange):
  segments = {'q_segment_ids': packed(1), 'kv_segment_ids': packed(2)[:, 8:]}
  compare(exchange, 4, {**segments, **DROPOUT}, keys=L - 8)


@pytest.mark.slow
@pytest.mark.parametrize('kv_heads', [1, 4])
def test_all_to_all_with_fewer_and_as_many_key_heads(kv_heads):
  compare(AllToAll, 4, {'causal': True, **DROPOUT}, kv_heads=kv_heads)


def test_zigzag_brings_a_chunk_of_either_end_to_each_device_and_back():
  places = jnp.arange(40.0)[None, :, None]
  on_devices = lambda function: jax.shard_map(
    lambda x: function(x, NAMES), mesh=devices(5), in_specs=TOKENS, out_specs=TOKENS
  )
  brought = on_devices(zigzag.enter)(places)
  expected = [chunk for device in range(5) for chunk in (device, 9 - device)]
  np.testing.assert_array_equal(brought[0, ::4, 0] // 4, expected)
  np.testing.assert_array_equal(on_devices(zigzag.leave)(brought), places)


@dataclasses.dataclass(frozen=True)
class Counting:
  """A core that adds one to an output for every call, by which queries tell how often they were compared with keys."""

  def attend(self, q, k, v, spec):
    del k, v
    # Results merge by their weights: an output of n and an lse of log(n) adds up.
    return jnp.ones_like(q), jnp.zeros(q.shape[:3])


def visits(number, fields):
  """How many chunks of keys each chunk of queries was compared with."""
  spec = AttentionSpec(**fields)
  q = jnp.ones((1, L, 1, 1))

  def on_device(q, spec):
    return jnp.exp(Ring(NAMES)(Counting(), q, q, q, spec)[1])

  call = jax.shard_map(on_device, mesh=devices(number), in_specs=(TOKENS, specs(spec)), out_specs=TOKENS)
  return np.rint(np.asarray(jax.jit(call)(q, spec)))[0, :: L // (2 * number), 0]


def test_a_causal_ring_computes_what_is_visible_and_gives_all_devices_the_same_to_do():
  chunks = visits(4, {'causal': True})
  np.testing.assert_array_equal(chunks, np.arange(1, 9))
  assert len({chunks[device] + chunks[7 - device] for device in range(4)}) == 1


def test_a_ring_skips_what_segments_and_windows_hide():
  documents = jnp.arange(L)[None] // 6 + 1
  np.testing.assert_array_equal(visits(4, {'causal': True, **of_both('segment_ids', documents)}), np.ones(8))
  np.testing.assert_array_equal(visits(4, of_both('segment_ids', documents)), np.ones(8))
  np.testing.assert_array_equal(visits(4, {'causal': True, 'window': 7}), [1, 1, 2, 2, 2, 2, 2, 2])


def compiled(exchange, number, fields, length, distances=None):
  """The gradient's program, where each device has `length` tokens."""
  shape = lambda heads: jax.ShapeDtypeStruct((1, length * number, heads, K), jnp.float32)
  call = across(exchange, number, return_lse=False)
  loss = lambda q, k, v: jnp.sum(call(q, k, v, AttentionSpec(**fields), distances) ** 2)
  sharding = jax.NamedSharding(devices(number), TOKENS)
  arguments = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding) for x in (shape(H), shape(G), shape(G))]
  return jax.jit(jax.grad(loss, (0, 1, 2))).lower(*arguments).compile()


def sent(program, kind):
  """Bytes that a device sends in collectives of a kind; all kinds must be it."""
  found = collectives(program.as_text())
  assert {one.kind for one in found} == {kind}
  return sum(one.bytes * int(np.prod(one.loops)) for one in found)


@pytest.mark.slow
@pytest.mark.parametrize('number', [4, 8])
def test_what_a_ring_sends(number):
  length = 32
  keys, queries = length * G * K * 4, length * H * K * 4
  round_trips = 2 * keys * ((number - 1) + (number - 1) + number)  # forward, backward, and gradients home
  assert sent(compiled(Ring, number, {}, length), 'collective-permute') == round_trips
  # Into zig-zag and back: q, k, v and the output, forward and backward.
  zigzagged = 2 * (2 * queries + 2 * keys)
  assert sent(compiled(Ring, number, {'causal': True}, length), 'collective-permute') == round_trips + zigzagged


@pytest.mark.slow
def test_a_window_ends_the_round():
  short = sent(compiled(Ring, 8, {'causal': True, 'window': 40}, 32), 'collective-permute')
  assert short == 2 * 32 * G * K * 4 * (2 + 2 + 3)


def test_what_all_to_all_sends():
  length, number = 32, 2
  sizes = 2 * (2 * length * H * K + 2 * length * G * K) * 4
  assert sent(compiled(AllToAll, number, {'causal': True}, length), 'all-to-all') == sizes


@pytest.mark.slow
@pytest.mark.parametrize('distances', [None, DISTANCES])
def test_memory_does_not_grow_with_the_number_of_devices(distances):
  bytes_of = lambda number: compiled(Ring, number, {'causal': True}, 128, distances).memory_analysis()
  few, many = (bytes_of(number).temp_size_in_bytes for number in (3, 8))
  assert many <= 1.01 * few


@pytest.mark.parametrize(
  'exchange, fields, words',
  [
    (Ring, BOTH_SIDES['window to both sides'], "set model.attention.context_parallel='all_to_all'"),
    (Ring, BOTH_SIDES['slopes to both sides'], 'measures distances backwards only'),
    (Ring, {'causal': True, **of_both('order', prefix())}, 'causal=True or orders, not both'),
    (AllToAll, {'causal': True}, "gives each of 8 devices the same share of 4 heads; .* or 'ring'"),
  ],
)
def test_what_cannot_be_is_refused_in_words(exchange, fields, words):
  with pytest.raises(ValueError, match=words):
    compare(exchange, 8, fields)


def test_halves_need_an_even_number_of_tokens():
  with pytest.raises(ValueError, match=r'here 3 tokens of 24; choose a length that 16 divides'):
    compiled(Ring, 8, {'causal': True}, 3)


def test_kernels_without_lse_are_refused():
  with pytest.raises(ValueError, match="'cudnn' cannot serve this call"):
    across(Ring, 2, 'cudnn')(*(normal(0, B, L, 2, K),) * 3, AttentionSpec(), None)
