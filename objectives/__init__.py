"""Training objectives: each turns rows of tokens into examples, and a model into a pure loss of them."""

from objectives.causal import Causal
from objectives.protocol import Objective
from objectives.task import Task, make_task, merge

OBJECTIVES = {'causal': Causal}

__all__ = ['OBJECTIVES', 'Objective', 'Task', 'check', 'create', 'make_task', 'merge']


def check(objective_config) -> None:
  """Refuses an objective that does not exist or a value out of range, with a ValueError that says what is allowed."""
  if objective_config.name not in OBJECTIVES:
    raise ValueError(f'objective.name={objective_config.name!r} does not exist; choose one of {", ".join(OBJECTIVES)}')
  if not 0 <= objective_config.label_smoothing < 1:
    raise ValueError(f'objective.label_smoothing={objective_config.label_smoothing} must be at least 0 and below 1')
  if objective_config.z_loss < 0:
    raise ValueError(f'objective.z_loss={objective_config.z_loss} must not be negative; PaLM used 1e-4')


def create(objective_config) -> Objective:
  """The objective that the config names."""
  return OBJECTIVES[objective_config.name].from_config(objective_config)
