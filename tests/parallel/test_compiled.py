"""What devices say to each other in a training step: kinds, counts and bytes, read from the compiled program.

On a CPU XLA makes no reduce-scatter: what is one on an accelerator is an all-reduce there, of which each device uses a
slice. Programs for TPUs are compiled without having any.
"""

import collections
import os

import jax
import numpy as np
import pytest
from harness import cells

from pallas_kernels import Device, target
from parallel.collectives import collectives
from training import program

pytestmark = pytest.mark.optimised
LAYERS = 2
_STREAM = 4 * cells.ROWS * cells.LENGTH * 32  # bytes of the residual stream of all rows in float32
_NOISE = 1024  # bytes: norms, vectors and numbers, which tiny models have as large as anything


def _compiled(**changes):
  built = cells.build('decoder', **changes)
  return built, built.step.lower(built.abstract_state, cells.batch(built, 0)).compile().as_text()


def _of_layers(text):
  """Kind, direction and bytes of the large collectives of a layer, each pass over the layers by itself."""
  found = [x for x in collectives(text) if x.loops and x.bytes > _NOISE]
  assert {x.loops for x in found} <= {(LAYERS,), (None,)}
  return sorted((x.kind, 'backward' if 'transpose' in x.scope else 'forward', x.bytes) for x in found)


def test_tensor_parallelism_costs_two_reductions_a_pass():
  _, text = _compiled(mesh__tensor=2)
  found = _of_layers(text)
  assert [x[:2] for x in found] == [('all-reduce', 'backward')] * 2 + [('all-reduce', 'forward')] * 2
  assert [x[2] for x in found[2:]] == [_STREAM] * 2
  # Backward the compiler of a CPU sends what up and gate, and query, key and value give to the stream side by side.
  assert [x[2] for x in found[:2]] == [2 * _STREAM, 3 * _STREAM]
  outside = collections.Counter(x.kind for x in collectives(text) if not x.loops and x.bytes > _NOISE)
  # The stream from the embedding and to the head, and numbers of each token: nothing of the vocabulary's size.
  assert set(outside) == {'all-reduce'}
  assert all(x.bytes <= _STREAM for x in collectives(text) if not x.loops)


@pytest.mark.slow
def test_sequence_parallelism_gathers_and_scatters_instead():
  _, text = _compiled(mesh__tensor=2, mesh__sequence_parallel=True)
  found = _of_layers(text)
  kinds = collections.Counter(x[:2] for x in found)
  # All-reduces of which each device keeps its slice of the length are reduce-scatters on accelerators.
  assert kinds == {
    ('all-gather', 'forward'): 2,
    ('all-gather', 'backward'): 2,
    ('all-reduce', 'forward'): 2,
    ('all-reduce', 'backward'): 2,
  }
  assert {x[2] for x in found if x[0] == 'all-gather'} == {_STREAM}


@pytest.mark.slow
def test_zero_3_gathers_a_layer_once_a_pass_and_reduces_its_gradient_once():
  built, text = _compiled(mesh__fsdp=4, zero_stage=3)
  leaves = jax.tree.leaves(built.abstract_state.params['layers'])
  layer = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves) // LAYERS
  found = [x for x in collectives(text) if x.loops]
  moved = collections.Counter()
  for x in found:
    moved[x.kind, 'backward' if 'transpose' in x.scope else 'forward'] += x.bytes
  assert moved == {
    ('all-gather', 'forward'): layer,
    ('all-gather', 'backward'): layer,
    ('all-reduce', 'backward'): layer,
  }
  assert sum(x.kind == 'all-reduce' for x in found) == 1


@pytest.mark.slow
def test_data_parallelism_reduces_each_gradient_once_a_step():
  built, text = _compiled(mesh__data=8, model__tie_embeddings=False)  # a tied table is reduced for both its uses
  params = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(built.abstract_state.params))
  found = [x for x in collectives(text) if x.bytes > 64]
  assert {x.kind for x in found} == {'all-reduce'}
  assert sum(x.bytes * (LAYERS if x.loops else 1) for x in found) == pytest.approx(params, rel=0.02)


def _compiled_for_tpus(**changes):
  """The step on four TPUs v5e that need not be there, with sizes that their tiles can hold."""
  pytest.importorskip('libtpu', reason='compiling for a TPU takes libtpu: pip install "jax[tpu]"')
  from jax.experimental import topologies

  os.environ['TPU_SKIP_MDS_QUERY'] = '1'
  os.environ['ALLOW_MULTIPLE_LIBTPU_LOAD'] = '1'
  devices = list(topologies.get_topology_desc(platform='tpu', topology_name='v5e:2x2').devices)
  sizes = {'model__embed_dim': 256, 'model__num_heads': 4, 'model__num_kv_heads': 4, 'model__mlp_dim': 512}
  length = 256
  config = cells.config(
    'decoder', **sizes, model__vocab_size=1024, data__sequence_length=length, data__batch_tokens=4 * length, **changes
  )
  built = program.build(config, devices=devices)
  batch = {name: jax.ShapeDtypeStruct((4, length), np.int32) for name in built.task.batch_axes}
  with target(Device.of(devices[0])):
    text = built.step.lower(built.abstract_state, batch).compile().as_text()
  return built, [x for x in collectives(text) if x.loops and x.bytes > 16 * _NOISE]


@pytest.mark.slow
@pytest.mark.proof(built_with=('libtpu',))
@pytest.mark.parametrize('sequence_parallel', [False, True])
def test_a_tpu_reduces_twice_a_pass_or_gathers_and_scatters_twice(sequence_parallel):
  _, found = _compiled_for_tpus(mesh__tensor=4, mesh__sequence_parallel=sequence_parallel)
  kinds = collections.Counter((x.kind, 'backward' if 'transpose' in x.scope else 'forward') for x in found)
  expected = ('all-gather', 'reduce-scatter') if sequence_parallel else ('all-reduce',)
  assert kinds == {(kind, way): 2 for kind in expected for way in ('forward', 'backward')}
  stream = 4 * 4 * 256 * 256
  assert {x.bytes for x in found} <= {stream, stream // 2}  # what only products read is rounded before it travels


@pytest.mark.slow
@pytest.mark.proof(built_with=('libtpu',))
def test_a_tpu_gathers_a_layer_once_a_pass_in_bfloat16_and_scatters_its_gradient():
  built, found = _compiled_for_tpus(mesh__fsdp=4, zero_stage=3)
  layers = built.abstract_state.params['layers']
  whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(layers)) // LAYERS
  matrices = whole - 2 * 256 * 4  # without the two norms
  moved = collections.Counter()
  for x in found:
    moved[x.kind, 'backward' if 'transpose' in x.scope else 'forward'] += x.bytes
  reduced = moved.pop(('all-reduce', 'backward'), 0) + moved['reduce-scatter', 'backward']
  scattered = moved.pop(('reduce-scatter', 'backward'))
  assert moved == {('all-gather', 'forward'): matrices // 2, ('all-gather', 'backward'): matrices // 2}
  # The compiler joins the gradient of attention's output to those of the norms and makes an all-reduce of the two.
  assert reduced == whole and scattered > 0.85 * whole
