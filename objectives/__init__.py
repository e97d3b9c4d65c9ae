"""Training objectives: each turns a model into a pure `loss(params, batch, rng) -> (mean, sums)`."""

from objectives import causal

OBJECTIVES = {'causal': causal}


def check(objective_config) -> None:
  """Refuses an objective that does not exist or a value out of range, with a ValueError that says what is allowed."""
  if objective_config.name not in OBJECTIVES:
    raise ValueError(f'objective.name={objective_config.name!r} does not exist; choose one of {", ".join(OBJECTIVES)}')
  if not 0 <= objective_config.label_smoothing < 1:
    raise ValueError(f'objective.label_smoothing={objective_config.label_smoothing} must be at least 0 and below 1')
  if objective_config.z_loss < 0:
    raise ValueError(f'objective.z_loss={objective_config.z_loss} must not be negative; PaLM used 1e-4')


def loss(objective_config, model):
  """The loss of the objective that the config names: see the objective's own `loss`."""
  return OBJECTIVES[objective_config.name].loss(objective_config, model)


def row_length(objective_config, sequence_length: int) -> int:
  """The tokens a row of a batch must hold for the model to see `sequence_length` of them."""
  return sequence_length + OBJECTIVES[objective_config.name].EXTRA_TOKENS
