"""From the config's `precision` group to a transformed loss."""

from precision.mixed import mixed_precision
from precision.policy import FLOAT32, RULES, Policy


def policy(precision_config) -> Policy:
  """The policy of the config: `float32` names the modules that stay in float32, `dtype` is the rule of the others.

  Raises:
    ValueError: `dtype` is not a rule.
  """
  if precision_config.dtype not in RULES:
    raise ValueError(
      f'precision.dtype is {precision_config.dtype!r}; use one of {", ".join(RULES)}, for example '
      '--config.precision.dtype=bfloat16'
    )
  islands = tuple((pattern, FLOAT32) for pattern in precision_config.float32)
  return Policy((*islands, ('*', precision_config.dtype)))


def apply(precision_config, fn):
  """`fn`, written in float32, computed as the config's `precision` group says; see `mixed_precision`.

  Raises:
    ValueError: as `policy`; when called, if a pattern of `float32` matches no matrix product.
  """
  return mixed_precision(fn, policy(precision_config))
