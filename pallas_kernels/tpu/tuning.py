"""Sizes of the blocks that the TPU kernels work on, by generation."""

import dataclasses

from pallas_kernels.spec import AttentionSpec, Shapes

_LANES = 128  # what a block's sizes are multiples of


@dataclasses.dataclass(frozen=True)
class Blocks:
  """Queries and keys of one block."""

  q: int
  k: int


@dataclasses.dataclass(frozen=True)
class Tuning:
  """Blocks of the forward pass, and of each kernel of the backward pass."""

  forward: Blocks
  backward: Blocks


# By device kind; then the largest head_dim an entry is for, and the bytes of a number of q, k and v. A step costs about
# 0.35 us besides its products, so faster generations get larger blocks, up to half of what their memory would hold.
TABLE = {
  'TPU v5 lite': {
    (128, 2): Tuning(Blocks(512, 512), Blocks(512, 512)),
    (256, 2): Tuning(Blocks(512, 512), Blocks(512, 256)),
    (128, 4): Tuning(Blocks(512, 512), Blocks(512, 256)),
    (256, 4): Tuning(Blocks(512, 256), Blocks(256, 256)),
  },
  'TPU v5': {
    (128, 2): Tuning(Blocks(1024, 512), Blocks(512, 512)),
    (256, 2): Tuning(Blocks(512, 512), Blocks(512, 512)),
    (128, 4): Tuning(Blocks(512, 512), Blocks(512, 256)),
    (256, 4): Tuning(Blocks(512, 256), Blocks(256, 256)),
  },
  'TPU v6 lite': {
    (128, 2): Tuning(Blocks(1024, 1024), Blocks(1024, 512)),
    (256, 2): Tuning(Blocks(1024, 512), Blocks(512, 512)),
    (128, 4): Tuning(Blocks(512, 512), Blocks(512, 512)),
    (256, 4): Tuning(Blocks(512, 512), Blocks(512, 256)),
  },
}
CAREFUL = Tuning(Blocks(128, 128), Blocks(128, 128))
WITH_BIAS = 512  # with a bias, whose blocks are of [queries, keys], neither may be larger


def tuning(kind: str, spec: AttentionSpec, shapes: Shapes, dtype) -> Tuning:
  """Returns the blocks for a call: those of the table, no longer than the call.

  A kind that is not in the table gets blocks of 128 x 128, which fit the vector memory of every generation but leave
  much of a large one's speed unused.

  Args:
    kind: as `jax.Device.device_kind` names it.
    spec: whose bias takes memory.
    shapes: sizes of the call.
    dtype: of q, k and v.
  """
  entries = TABLE.get(kind, {})
  fitting = [key for key in entries if key[0] >= shapes.head_dim and key[1] == dtype.itemsize]
  chosen = entries[min(fitting)] if fitting else CAREFUL
  limit = WITH_BIAS if spec.bias is not None else None
  return Tuning(
    *(
      Blocks(_fit(blocks.q, shapes.q_len, limit), _fit(blocks.k, shapes.kv_len, limit))
      for blocks in (chosen.forward, chosen.backward)
    )
  )


def _fit(size, length, limit):
  return min(size, -(-length // _LANES) * _LANES, limit or size)
