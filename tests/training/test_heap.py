"""Freed memory is kept where it fits."""

import json
import os
import subprocess
import sys

import pytest

from training import heap

_PROGRAM = """
import json, resource, sys
import numpy as np
from training import heap
kept = heap.keep_if_it_fits() if sys.argv[1] == 'kept' else False
def faults():
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  for _ in range(20):
    np.ones(4 << 20, np.uint8)
  return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(json.dumps([kept, faults()]))
"""


def _run(mode):
  environment = os.environ | {'GLIBC_TUNABLES': 'glibc.malloc.arena_max=1:glibc.malloc.mmap_threshold=1048576'}
  done = subprocess.run([sys.executable, '-c', _PROGRAM, mode], env=environment, check=True, capture_output=True)
  return json.loads(done.stdout)


def test_large_blocks_are_not_faulted_in_again():
  kept, faults = _run('kept')
  if not kept:
    pytest.skip("malloc is not glibc's, or there is too little memory")
  assert _run('given back')[1] > 5000 and faults < 500


def test_nothing_is_kept_where_it_would_not_fit(monkeypatch):
  monkeypatch.setattr(heap, 'GROWTH', 1e9)
  assert not heap.keep_if_it_fits()


def test_there_is_room_for_this_process():
  assert heap.room() > 100e6
