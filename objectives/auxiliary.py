"""What layers add to the loss of any objective."""

PREFIX = 'aux/'


def auxiliary_loss(metrics):
  """The sum over names of the means of the metrics that begin with 'aux/', to be added to an objective's mean.

  A layer reports such a loss times its weight in the config, over a weight of 1. So the mean is over the layers that
  have it (Fedus et al. 2022 add layers up: set a weight that is as many times larger), each value already over the
  tokens of the whole (micro)batch, on however many devices it lies. Over microbatches it becomes the mean weighted by
  their counted tokens, as does all that is differentiated; a term that is not linear in the tokens, such as the balance
  of experts, is then that of a microbatch.

  Args:
    metrics: those of `model.hidden`, added up over layers.

  Returns:
    float32 scalar, or 0 where there is none.
  """
  return sum(metric.total / metric.weight for name, metric in metrics.items() if name.startswith(PREFIX))
