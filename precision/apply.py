"""From the config's `precision` group to a transformed loss."""

from precision.bfloat16 import bf16

DTYPES = ('float32', 'bfloat16')


def apply(precision_config, loss):
  """Returns `loss` computed in the dtype that the config names.

  Args:
    precision_config: the config's `precision` group; reads `dtype`.
    loss: any function of arrays; one written in float32.

  Returns:
    `loss` itself for float32, `precision.bf16(loss)` for bfloat16.

  Raises:
    ValueError: another dtype.
  """
  if precision_config.dtype == 'float32':
    return loss
  if precision_config.dtype == 'bfloat16':
    return bf16(loss)
  raise ValueError(f"precision.dtype is {precision_config.dtype!r}; use one of {', '.join(DTYPES)}, for example "
                   '--config.precision.dtype=bfloat16')
