"""What moves in a training step whose rows are split over devices: keys of one device at a time."""

import collections

import numpy as np
import pytest
from harness import cells

from parallel.collectives import collectives

DEVICES = 4
HEADS, KV_HEADS, HEAD_DIM = 4, 2, 8


def _way(collective):
  return 'backward' if 'transpose' in collective.scope else 'forward'


def _sent(text):
  """Bytes of a layer's collectives by kind and direction; each stands in the loop over the layers, some in a ring's."""
  sent = collections.Counter()
  for one in collectives(text):
    if one.loops:
      sent[one.kind, _way(one)] += one.bytes * int(np.prod(one.loops[1:]))
  return sent


@pytest.mark.slow
@pytest.mark.parametrize('stack', ['decoder', 'encoder'])
def test_a_ring_sends_keys_and_values_round_and_gathers_nothing(stack):
  built = cells.build(stack, mesh__sequence=DEVICES)
  text = built.step.lower(built.abstract_state, cells.batch(built, 0)).compile().as_text()
  sent = _sent(text)
  assert {kind for kind, _ in sent} == {'collective-permute', 'all-reduce'}  # the latter of a layer's gradients
  tokens = cells.ROWS * cells.LENGTH // DEVICES
  queries = tokens * HEADS * HEAD_DIM * 4
  keys = tokens * (KV_HEADS if stack == 'decoder' else HEADS) * HEAD_DIM * 4
  zigzag = 2 * queries + 2 * keys if stack == 'decoder' else 0
  hops = DEVICES - 1
  assert sent['collective-permute', 'forward'] == 2 * hops * keys + zigzag
  assert sent['collective-permute', 'backward'] == 2 * (hops + hops + 1) * keys + zigzag
