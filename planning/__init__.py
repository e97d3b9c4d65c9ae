"""What a run takes, before it runs: layouts, programs compiled for devices that are not there, estimates, searches."""

from planning.plan import device_count, make_plan, state_layout, suggest, words
from planning.report import Plan, layout_text, misfit_words, text, to_json
from planning.setup import resolve
from planning.topology import parse, stay_on_cpu

__all__ = [
  'Plan',
  'device_count',
  'layout_text',
  'make_plan',
  'misfit_words',
  'parse',
  'resolve',
  'state_layout',
  'stay_on_cpu',
  'suggest',
  'text',
  'to_json',
  'words',
]
