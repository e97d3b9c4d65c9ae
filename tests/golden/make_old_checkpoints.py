"""Made the checkpoints in old_checkpoints/, with the code of the time when each array had one checksum.

python tests/golden/make_old_checkpoints.py tests/golden/old_checkpoints     # in a checkout of 8850654
"""

import pathlib
import shutil
import sys

import numpy as np

from training import checkpoints

STATE = {'params': {'w': np.arange(2048, dtype=np.float32).reshape(4, 512), 'b': np.ones(4, np.float32)}}


def main():
  target = pathlib.Path(sys.argv[1])
  with checkpoints.Checkpoints(target / 'directory') as found:
    found.save(1, STATE, {'step': 40})
    w, b = STATE['params']['w'], STATE['params']['b']
    parts = [('params/w', (i,), w[i]) for i in range(4)] + [('params/b', (), b)]
    found.save_parts(2, {'params/w': w.shape, 'params/b': b.shape}, parts, {'step': 40})
  for step, name in ((1, 'saved'), (2, 'parts')):
    (target / 'directory' / str(step)).rename(target / name)
  shutil.rmtree(target / 'directory')


if __name__ == '__main__':
  main()
