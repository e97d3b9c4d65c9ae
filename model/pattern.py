"""Which blocks a stack has, and in what they differ."""

import dataclasses
import math

from model.stack import Segment

ATTENTION_KINDS = ('global', 'local')


@dataclasses.dataclass(frozen=True)
class BlockSpec:
  """In what blocks of one stack may differ.

  Attributes:
    window: tokens that a token sees, itself included, to either side; 0 = all.
    attention_norm: whether the attention's branch has norms.
    cross: whether a branch of cross-attention stands between the others.
    experts: whether the feed-forward is a mixture of experts.
  """

  window: int = 0
  attention_norm: bool = True
  cross: bool = False
  experts: bool = False


def segments(model_config, cross: bool = False) -> tuple[Segment, ...]:
  """The stack of a config: the layers that stand before the pattern, the pattern of blocks as often as it fits, and
  what is left of it.

  Args:
    model_config: resolved.
    cross: whether its blocks have cross-attention.

  Raises:
    ValueError: the pattern names what does not exist, or does not agree with the window.
  """
  window, pattern = model_config.attention.window, tuple(model_config.attention.pattern)
  if not pattern:
    raise ValueError(
      f'model.attention.pattern={pattern} must name one or more of {", ".join(ATTENTION_KINDS)}, '
      "such as ('local', 'global')"
    )
  if (window > 0) != ('local' in pattern):
    raise ValueError(
      f'model.attention.window={window} and model.attention.pattern={pattern} do not agree: give local '
      "layers a window of at least 1, or use model.attention.pattern=('global',) with window 0"
    )
  has_experts = _expert_layers(model_config)

  def spec(layer):
    is_local = pattern[layer % len(pattern)] == 'local'
    has_norm = layer > 0 or model_config.first_norm
    return BlockSpec(window if is_local else 0, has_norm, cross, has_experts[layer])

  specs = tuple(map(spec, range(model_config.num_layers)))
  dense, every = (model_config.moe.first_dense, model_config.moe.every) if any(has_experts) else (0, 1)
  before, period = max(dense, int(not model_config.first_norm)), math.lcm(len(pattern), every)
  repeats = (len(specs) - before) // period
  rest = before + repeats * period
  parts = [Segment(specs[:before], 1), Segment(specs[before : before + period], repeats), Segment(specs[rest:], 1)]
  return tuple(part.reduced() for part in parts if part.num_layers)


def _expert_layers(model_config) -> list[bool]:
  """Which layers have experts: behind the first dense ones number `place` of each run of `every`."""
  moe_config = model_config.moe
  first, every, place = moe_config.first_dense, moe_config.every, moe_config.place or moe_config.every
  exist = moe_config.num_experts > 0
  return [exist and i >= first and (i - first + 1 - place) % every == 0 for i in range(model_config.num_layers)]
