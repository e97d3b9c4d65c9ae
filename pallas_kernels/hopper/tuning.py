"""Block sizes of the Hopper kernels; benchmarks/results/hopper_registers.md tells what each compiles to."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Forward:
  """Attributes: compute warpgroups of 64 queries each; keys of a block; blocks in shared memory at once."""

  warpgroups: int
  k_size: int
  stages: int


FORWARD = {  # by head_dim
  64: Forward(warpgroups=2, k_size=128, stages=2),
  96: Forward(warpgroups=2, k_size=128, stages=2),
  128: Forward(warpgroups=2, k_size=128, stages=2),
  192: Forward(warpgroups=2, k_size=64, stages=2),
  256: Forward(warpgroups=2, k_size=64, stages=2),
}
FORWARD_RICH = {size: dataclasses.replace(sizes, k_size=64) for size, sizes in FORWARD.items()}

DECODE = {
  size: dataclasses.replace(sizes, warpgroups=1, stages=3 if size < 192 else 2) for size, sizes in FORWARD.items()
}


@dataclasses.dataclass(frozen=True)
class Queries:
  """Attributes: warpgroups of 64 queries; keys of a block; blocks of keys and of values in shared memory at once."""

  warpgroups: int
  k_size: int
  stages: int
  v_stages: int


QUERIES = {
  64: Queries(warpgroups=2, k_size=128, stages=2, v_stages=2),
  96: Queries(warpgroups=2, k_size=64, stages=2, v_stages=2),
  128: Queries(warpgroups=2, k_size=64, stages=2, v_stages=2),
  192: Queries(warpgroups=2, k_size=64, stages=2, v_stages=1),
  256: Queries(warpgroups=2, k_size=64, stages=1, v_stages=1),
}
QUERIES_RICH = {
  size: dataclasses.replace(sizes, k_size=64, stages=1 if size > 128 else 2) for size, sizes in QUERIES.items()
}


@dataclasses.dataclass(frozen=True)
class Keys:
  """Sizes and order of the backward kernel.

  Attributes:
    k_size: keys of a tile. With 128, each of the two warpgroups has 64 of its own; with 64, one computes the gradient
      of the keys, the other that of the values.
    stages: blocks of 64 queries in shared memory at once.
    fused: whether the gradient of the queries comes along (for 128 keys), or has a kernel of its own.
    ahead: whether the product that gives the gradient of the probabilities runs during their softmax, which takes
      registers.
  """

  k_size: int
  stages: int
  fused: bool = False
  ahead: bool = False


KEYS = {
  64: Keys(k_size=128, stages=2, fused=True, ahead=True),
  96: Keys(k_size=128, stages=2, fused=True, ahead=True),
  128: Keys(k_size=128, stages=2, fused=True, ahead=True),
  192: Keys(k_size=64, stages=2),
  256: Keys(k_size=64, stages=2),
}
KEYS_RICH = {size: dataclasses.replace(sizes, k_size=64, fused=False, ahead=False) for size, sizes in KEYS.items()}


def sizes(spec, head_dim: int, q_len: int) -> tuple[Forward, Queries, Keys]:
  """The sizes for a call. What takes registers or shared memory of its own for each logit leaves room for fewer."""
  rich = spec.bias is not None or spec.alibi_slopes is not None or spec.softcap is not None or spec.dropout_rate > 0
  tables = (FORWARD_RICH, QUERIES_RICH, KEYS_RICH) if rich else (FORWARD, QUERIES, KEYS)
  found = tuple(table[head_dim] for table in tables)
  return (DECODE[head_dim], *found[1:]) if q_len <= 64 and not rich else found
