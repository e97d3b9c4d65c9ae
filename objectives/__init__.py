"""Training objectives: each turns rows of tokens into examples, and a model into a pure loss of them."""

from objectives.causal import Causal
from objectives.denoising import Denoising
from objectives.masked import Masked
from objectives.permutation import Permutation
from objectives.prefix import Prefix
from objectives.protocol import Objective
from objectives.seq2seq import Seq2Seq
from objectives.span_corruption import SpanCorruption
from objectives.task import Task, make_task, merge
from objectives.ul2 import UL2

OBJECTIVES = {
  'causal': Causal,
  'masked': Masked,
  'span_corruption': SpanCorruption,
  'prefix': Prefix,
  'permutation': Permutation,
  'denoising': Denoising,
  'ul2': UL2,
  'seq2seq': Seq2Seq,
}
# The families of models that each one trains.
FAMILIES = {
  'causal': ('decoder',),
  'masked': ('encoder',),
  'span_corruption': ('encoder_decoder',),
  'prefix': ('decoder',),
  'permutation': ('decoder',),
  'denoising': ('encoder_decoder',),
  'ul2': ('encoder_decoder',),
  'seq2seq': ('encoder_decoder',),
}

__all__ = ['FAMILIES', 'OBJECTIVES', 'Objective', 'Task', 'check', 'create', 'make_task', 'merge', 'reserved']


def create(objective_config, special=None) -> Objective:
  """The objective that the config names.

  Args:
    objective_config: the group `objective` of a config.
    special: what it must know of the vocabulary, a tokenizer's `special`; None where no examples are made.

  Raises:
    ValueError: values do not fit each other, or the vocabulary lacks a token that the objective needs.
  """
  return OBJECTIVES[objective_config.name].from_config(objective_config, special)


def reserved(objective_config) -> tuple[str, ...]:
  """Names of the special tokens that a tokenizer trained for the objective has, in the order of their ids."""
  return OBJECTIVES[objective_config.name].reserved(objective_config)


def check(objective_config, family: str, corpus: str) -> None:
  """Refuses a model or a corpus that the objective cannot use.

  Raises:
    ValueError: says which go together.
  """
  name = objective_config.name
  if family not in FAMILIES[name]:
    fitting = ', '.join(other for other, families in FAMILIES.items() if family in families)
    raise ValueError(
      f'objective.name={name} trains model.family={" or ".join(FAMILIES[name])}, not {family}, which is trained by '
      f'{fitting}; for example --config.model.family={FAMILIES[name][0]}'
    )
  if (name == 'seq2seq') != (corpus == 'pairs'):
    raise ValueError(
      f'objective.name={name} and data.corpus={corpus} do not go together: sources and their targets are '
      'objective.name=seq2seq with data.corpus=pairs'
    )
