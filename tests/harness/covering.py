"""Few combinations of options that together hold every pair (or triple) of values: fixed shapes compile once each."""

import itertools
import random
from collections.abc import Mapping, Sequence


def rows(levels: Mapping[str, Sequence], strength: int = 2) -> list[dict]:
  """Covering array by a greedy choice of one row after another, always the same.

  Args:
    levels: the values that each option takes.
    strength: every combination of the values of so many options stands in some row.

  Returns rows, each with a value for every option; the first ones cover most.
  """
  chance = random.Random(0)
  missing = set()
  for names in itertools.combinations(levels, strength):
    missing |= {tuple(zip(names, places)) for places in itertools.product(*(range(len(levels[n])) for n in names))}
  order = {name: i for i, name in enumerate(levels)}
  found = []
  while missing:
    row = dict(chance.choice(sorted(missing, key=repr)))
    for name in chance.sample(list(levels), len(levels)):
      if name not in row:
        row[name] = max(
          chance.sample(range(len(levels[name])), len(levels[name])),
          key=lambda place: sum(
            tuple(sorted((*others, (name, place)), key=lambda item: order[item[0]])) in missing
            for others in itertools.combinations(row.items(), strength - 1)
          ),
        )
    missing -= set(itertools.combinations(sorted(row.items(), key=lambda item: order[item[0]]), strength))
    found.append({name: levels[name][row[name]] for name in levels})
  return found
