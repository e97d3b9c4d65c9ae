"""Every entry of the TPU tuning table, compiled by the real compiler for the chip it is for, without one."""

import dataclasses
import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import AttentionSpec, Device, attention, target
from pallas_kernels.tpu import tuning
from pallas_kernels.tpu.tuning import Blocks, Tuning

pytestmark = [pytest.mark.slow, pytest.mark.proof(built_with=('libtpu',))]
_BATCH, _LENGTH, _HEADS, _KV_HEADS = 2, 2048, 4, 2
_TOPOLOGIES = {'TPU v5 lite': 'v5e:2x2', 'TPU v5': 'v5p:2x2x1', 'TPU v6 lite': 'v6e:2x2'}
_ENTRIES = [(kind, *key) for kind, entries in tuning.TABLE.items() for key in entries]
_SPECS = {
  'full': AttentionSpec(),
  'causal': AttentionSpec(causal=True),
  'everything': AttentionSpec(causal=True, window=700, softcap=30.0, dropout_rate=0.1),
}


@functools.cache
def _topology(kind):
  pytest.importorskip('libtpu', reason='compiling for a TPU takes libtpu: pip install "jax[tpu]"')
  from jax.experimental import topologies

  os.environ['TPU_SKIP_MDS_QUERY'] = '1'
  # Every worker opens the library; it has a lock file for processes that would share a chip, and here is none.
  os.environ['ALLOW_MULTIPLE_LIBTPU_LOAD'] = '1'
  return topologies.get_topology_desc(platform='tpu', topology_name=_TOPOLOGIES[kind])


def _arrays(length, bias_shape):
  """What `everything` has besides its static fields: shape and dtype by name."""
  ids = ((_BATCH, length), jnp.int32)
  return {
    'q_segment_ids': ids,
    'kv_segment_ids': ids,
    'q_order': ids,
    'kv_order': ids,
    'alibi_slopes': ((_HEADS,), jnp.float32),
    'sinks': ((_HEADS,), jnp.float32),
    'dropout_seed': ((), jnp.uint32),
    'bias': (bias_shape, jnp.float32),
  }


def _compile(kind, spec, head_dim, dtype, arrays, length=_LENGTH):
  """Returns the program for outputs and all gradients on one chip."""
  device = _topology(kind).devices[0]
  mesh = jax.sharding.Mesh(np.array([device]), ('devices',))
  whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  struct = lambda shape, dtype: jax.ShapeDtypeStruct(shape, dtype, sharding=whole)
  arrays = {name: struct(*array) for name, array in arrays.items()}
  learned = {name: arrays.pop(name) for name in ('alibi_slopes', 'bias', 'sinks') if name in arrays}

  def loss(q, k, v, learned, arrays):
    full = dataclasses.replace(spec, **learned, **arrays)
    out, lse = attention(q, k, v, full, implementation='tpu', return_lse=True)
    return jnp.sum(jnp.sin(out.astype(jnp.float32))) + jnp.sum(jnp.where(lse > -jnp.inf, lse, 0))

  q, k = (struct((_BATCH, length, heads, head_dim), dtype) for heads in (_HEADS, _KV_HEADS))
  with target(Device.of(device)), jax.set_mesh(mesh):
    return jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3))).lower(q, k, k, learned, arrays).compile()


@pytest.mark.parametrize('name', _SPECS)
@pytest.mark.parametrize('kind, head_dim, itemsize', _ENTRIES)
def test_every_entry_of_the_table_compiles_in_the_memory_of_its_chip(kind, head_dim, itemsize, name):
  arrays = _arrays(_LENGTH, (1, _HEADS, _LENGTH, _LENGTH)) if name == 'everything' else {}
  program = _compile(kind, _SPECS[name], head_dim, {2: jnp.bfloat16, 4: jnp.float32}[itemsize], arrays)
  kernels = program.as_text().count('custom_call_target="tpu_custom_call"')
  assert kernels == (4 if name == 'everything' else 3)


@pytest.mark.parametrize('kind', _TOPOLOGIES)
def test_blocks_without_a_tuned_entry_compile_everywhere(kind, monkeypatch):
  monkeypatch.setattr(tuning, 'TABLE', {})
  arrays = _arrays(_LENGTH, (1, _HEADS, _LENGTH, _LENGTH))
  _compile(kind, _SPECS['everything'], 256, jnp.float32, arrays)


@pytest.mark.parametrize('head_dim, length', [(1, 200), (40, 1), (80, 333), (96, 777), (192, 1000)])
@pytest.mark.parametrize(
  'of_batch, of_heads, of_queries', [(False, False, False), (True, True, False), (True, False, True)]
)
def test_any_head_dim_length_and_shape_of_bias_compiles(head_dim, length, of_batch, of_heads, of_queries):
  bias_shape = (_BATCH if of_batch else 1, _HEADS if of_heads else 1, length if of_queries else 1, length)
  _compile('TPU v5 lite', _SPECS['everything'], head_dim, jnp.bfloat16, _arrays(length, bias_shape), length)


def test_the_gradient_of_a_bias_that_nobody_uses_costs_nothing():
  constant = dataclasses.replace(_SPECS['causal'], bias=jnp.zeros((1, 1, 1, _LENGTH)))
  program = _compile('TPU v5 lite', constant, 64, jnp.bfloat16, {})
  assert program.as_text().count('custom_call_target="tpu_custom_call"') == 3


def test_blocks_beyond_the_memory_of_the_chip_are_refused(monkeypatch):
  huge = Blocks(2048, 2048)
  monkeypatch.setitem(tuning.TABLE['TPU v5 lite'], (128, 2), Tuning(huge, huge))
  with pytest.raises(Exception, match='Ran out of memory in memory space vmem'):
    _compile('TPU v5 lite', _SPECS['causal'], 128, jnp.bfloat16, {})
