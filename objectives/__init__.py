"""Training objectives: each turns rows of tokens into examples, and a model into a pure loss of them."""

from objectives.causal import Causal
from objectives.protocol import Objective
from objectives.task import Task, make_task, merge

OBJECTIVES = {'causal': Causal}

__all__ = ['OBJECTIVES', 'Objective', 'Task', 'create', 'make_task', 'merge']


def create(objective_config) -> Objective:
  """The objective that the config names."""
  return OBJECTIVES[objective_config.name].from_config(objective_config)
