"""The table of collectives."""

from benchmarks.collectives import module, rows
from parallel.collectives import Collective


def _collective(scope, size=2**20, loops=(), kind='all-reduce'):
  return Collective(kind, size, loops, scope)


def test_the_module_is_what_the_model_named():
  scopes = {
    'jit(step)/while/body/jvp(head)/shard_map/linear_cross_entropy/reduce_scatter': 'head/linear_cross_entropy',
    'jit(step)/transpose(jvp(layers))/while/body/checkpoint/rematted_computation/mlp/up/dot_general': 'layers/mlp/up',
    'jit(step)/transpose(jvp(block))/(attention/key/dot_general:mlp/up/dot_general)': 'block/attention/key and others',
    'jit(step)/reduce_sum': '',
    '': '',
  }
  assert [module(_collective(scope)) for scope in scopes] == list(scopes.values())


def test_equal_ones_share_a_row_and_loops_multiply():
  found = [
    _collective('jit(f)/head/psum', 2**20),
    _collective('jit(f)/head/psum', 3 * 2**20),
    _collective('jit(f)/mlp/up/dot', 2**30, (8, None, 4), 'all-gather'),
  ]
  assert rows(found) == [
    ['all-gather', 'mlp/up', '8 x ? x 4', 1, 32, '1,024', 32.0],
    ['all-reduce', 'head', 'none', 2, 2, '1 to 3', 4 / 1024],
  ]
