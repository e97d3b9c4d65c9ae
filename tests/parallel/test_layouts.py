"""Every kind of stack gives on every layout what it gives on one device: losses, gradients and parameters.

One table of cells: a stack of `harness.cells` and what its config says of the layout. Each stack and each axis of the
mesh stands once among the quick tests.
"""

import jax
import pytest
from harness import cells

TOLERANCE = 1e-5

# Layouts that every stack of a table should run on: an axis alone, pairs that people use, triples.
ALONE = {
  'data': {'data': 8},
  'zero 0': {'fsdp': 8, 'zero_stage': 0},
  'zero 1': {'fsdp': 8, 'zero_stage': 1},
  'zero 2': {'fsdp': 8, 'zero_stage': 2},
  'zero 3': {'fsdp': 8, 'zero_stage': 3},
  'tensor': {'tensor': 4},
  'sequence parallel': {'tensor': 4, 'sequence_parallel': True},
  'expert': {'expert': 4},
  'pipeline': {'pipeline': 2},
  'pipeline of 4': {'pipeline': 4, 'microbatches': 8, 'num_layers': 4},
  'pipeline in rounds': {'pipeline': 2, 'pipeline_rounds': 2, 'num_layers': 4},
}
CONTEXT = {
  'sequence 2': {'sequence': 2},
  'sequence 4': {'sequence': 4},
  'sequence 8': {'sequence': 8},
  'all to all': {'sequence': 4, 'context_parallel': 'all_to_all'},
  'data, sequence': {'data': 2, 'sequence': 4},
  'sequence, tensor': {'sequence': 4, 'tensor': 2},
  'sequence, sequence parallel': {'sequence': 2, 'tensor': 2, 'sequence_parallel': True},
  'fsdp, sequence': {'fsdp': 2, 'sequence': 4, 'zero_stage': 3},
  'all to all, tensor': {'sequence': 2, 'tensor': 2, 'context_parallel': 'all_to_all'},
  'data, sequence, tensor': {'data': 2, 'sequence': 2, 'tensor': 2},
}
PAIRS = {
  'data, fsdp': {'data': 2, 'fsdp': 4, 'zero_stage': 3},  # hybrid: split within groups of 4
  'data, fsdp, zero 2': {'data': 2, 'fsdp': 4, 'zero_stage': 2},
  'data, tensor': {'data': 4, 'tensor': 2},
  'fsdp, tensor': {'fsdp': 4, 'tensor': 2, 'zero_stage': 3},
  'pipeline, data': {'pipeline': 2, 'data': 2, 'microbatches': 4},
  'pipeline, tensor': {'pipeline': 2, 'tensor': 2},
  'pipeline, fsdp': {'pipeline': 2, 'fsdp': 2, 'zero_stage': 3},
  'data, expert': {'data': 2, 'expert': 4},
  'fsdp, expert': {'fsdp': 2, 'expert': 4, 'zero_stage': 3},
  'expert, tensor': {'expert': 4, 'tensor': 2},
  'fsdp, sequence parallel': {'fsdp': 2, 'tensor': 4, 'sequence_parallel': True, 'zero_stage': 3},
}
TRIPLES = {
  'data, fsdp, tensor': {'data': 2, 'fsdp': 2, 'tensor': 2, 'zero_stage': 3, 'sequence_parallel': True},
  'pipeline, fsdp, tensor': {'pipeline': 2, 'fsdp': 2, 'tensor': 2, 'zero_stage': 3, 'sequence_parallel': True},
  'slices': {'data': 2, 'fsdp': 2, 'tensor': 2, 'zero_stage': 1, 'slices': 2},
}
ACCUMULATED = {
  'data, accumulated': {'data': 2, 'fsdp': 2, 'zero_stage': 2, 'accumulation_steps': 2},
  'expert, accumulated': {'expert': 2, 'fsdp': 2, 'zero_stage': 2, 'accumulation_steps': 2},
}
FAMILIES = ('decoder', 'encoder', 'encoder_decoder', 'moe')
# What a layout has to treat in its own way: odd sizes, other attentions and positions.
SPECIAL = ('odd', 'latent', 'shaw', 'alibi', 'xlnet')

QUICK = [
  ('decoder', 'fsdp, sequence parallel'),
  ('encoder', 'data, fsdp'),
  ('encoder_decoder', 'tensor'),
  ('moe', 'expert, accumulated'),
  ('decoder', 'sequence, tensor'),
  ('decoder', 'pipeline'),
]
_LAYOUTS = ALONE | CONTEXT | PAIRS | TRIPLES | ACCUMULATED
_ALL = [
  *((stack, layout) for layout in _LAYOUTS for stack in FAMILIES),
  *((stack, layout) for layout in ('sequence 4', 'all to all, tensor') for stack in SPECIAL if stack != 'alibi'),
  ('alibi', 'sequence 4'),
  *((stack, layout) for layout in ('zero 3', 'sequence parallel', 'data, fsdp, tensor') for stack in SPECIAL),
]
# Of all these the slow tests take each layout with one stack, in turn, and each special stack with two layouts.
_SLOW = {(FAMILIES[3 if 'expert' in layout else i % 4], layout) for i, layout in enumerate(_LAYOUTS)}
_SLOW |= {(stack, 'sequence 4') for stack in SPECIAL} | {(stack, 'data, fsdp, tensor') for stack in SPECIAL}


def _marked(cell):
  marks = () if cell in QUICK else pytest.mark.slow if cell in _SLOW else pytest.mark.exhaustive
  return pytest.param(*cell, id=', on '.join(cell), marks=marks)


CELLS = [_marked(cell) for cell in dict.fromkeys([*QUICK, *_ALL])]


def changes(layout: str) -> dict:
  """Key paths of the config and their values."""
  top = {
    'zero_stage': 'zero_stage',
    'accumulation_steps': 'optimizer__accumulation_steps',
    'context_parallel': 'model__attention__context_parallel',
    'num_layers': 'model__num_layers',
  }
  return {top.get(key, f'mesh__{key}'): value for key, value in _LAYOUTS[layout].items()}


@pytest.mark.optimised(False)
@pytest.mark.parametrize('stack, layout', CELLS)
def test_a_layout_gives_what_one_device_gives(stack, layout, capfd):
  chosen = changes(layout)
  # Each microbatch drops out what its key says, so their number is part of what is computed.
  own = {key: value for key, value in chosen.items() if key.startswith(('optimizer', 'model__num'))}
  expected = cells.baseline(stack, **own)
  built = cells.build(stack, **chosen)
  assert built.mesh.size > 1
  got = cells.run(built)
  found = cells.differences(got, expected)
  wrong = {name: f'{value:.1e}' for name, value in found.items() if value > TOLERANCE}
  assert not wrong, wrong
  assert len(found) > 2 * len(jax.tree.leaves(got.params))
  # The partitioner says so where it copied a whole array to every device to lay it out anew.
  assert 'full rematerialization' not in capfd.readouterr().err


@pytest.mark.slow
def test_the_moving_average_is_evaluated_where_it_lies():
  """At stages 1 and 2 it is split and the parameters are not."""
  losses = []
  for chosen in ({}, {'mesh__fsdp': 4, 'zero_stage': 1}):
    built = cells.build('odd', **chosen)
    metrics = built.evaluate(built.init().eval_params, cells.batch(built, 0))
    losses.append(float(metrics['loss'].value))
  assert losses[0] == pytest.approx(losses[1], rel=TOLERANCE)
