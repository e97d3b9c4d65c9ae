"""Training objectives: each turns a model into a pure `loss(params, batch, rng) -> (mean, sums)`."""

from objectives import causal

OBJECTIVES = {'causal': causal}


def loss(objective_config, model):
  """The loss of the objective that the config names: see the objective's own `loss`."""
  return OBJECTIVES[objective_config.name].loss(objective_config, model)


def row_length(objective_config, sequence_length: int) -> int:
  """The tokens a row of a batch must hold for the model to see `sequence_length` of them."""
  return sequence_length + OBJECTIVES[objective_config.name].EXTRA_TOKENS
