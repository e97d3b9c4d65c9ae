"""Which rule an equation gets: an ordered list of (pattern, rule), decided before anything is rounded."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from precision import jaxprs, paths

FLOAT32, BFLOAT16 = 'float32', 'bfloat16'
RULES = (FLOAT32, BFLOAT16)


@dataclasses.dataclass(frozen=True)
class Policy:
  """Rules by module path; the first pattern that matches counts.

  Attributes:
    rules: (pattern, rule) pairs, see `paths.matches`; the last pattern should be '*'.
  """

  rules: tuple[tuple[str, str], ...]

  def __post_init__(self):
    for pattern, rule in self.rules:
      if rule not in RULES:
        raise ValueError(f'the rule for {pattern!r} is {rule!r}; it must be one of {", ".join(RULES)}')

  def rule(self, path: str) -> str:
    """The rule of an equation; float32 where no pattern matches."""
    return next((rule for pattern, rule in self.rules if paths.matches(pattern, path)), FLOAT32)

  def rule_of(self, path: str, eqn) -> str:
    """The rule of one equation: float32 also for a product that was written with `precision=HIGHEST`."""
    highest = eqn.primitive.name == 'dot_general' and eqn.params['precision'] == (lax.Precision.HIGHEST,) * 2
    return FLOAT32 if highest else self.rule(path)

  def within(self, fn, *args) -> 'Policy':
    """The policy without the patterns that match no matrix product of `fn(*args)`, a part of what it is for."""
    found = [path for path, _ in products(jax.make_jaxpr(fn)(*args).jaxpr)]
    matches = lambda pattern: any(paths.matches(pattern, path) for path in found)
    return Policy(tuple((pattern, rule) for pattern, rule in self.rules if pattern == '*' or matches(pattern)))

  def check(self, jaxpr) -> None:
    """Raises ValueError where a pattern matches no matrix product of a jaxpr."""
    found = {path for path, _ in products(jaxpr)}
    paths.select([pattern for pattern, _ in self.rules if pattern != '*'], found)


def is_lookup(eqn) -> bool:
  """Whether an equation takes rows of a table, as an embedding does: a product with one-hot rows."""
  table = eqn.invars[0].aval if eqn.primitive.name == 'gather' else None
  return table is not None and table.ndim == 2 and table.dtype == jnp.float32


def products(jaxpr, path: str = ''):
  """Yields (path, equation) for every equation that a rule is about, at any depth, each once."""
  for eqn in jaxpr.eqns:
    here = jaxprs.join(path, str(eqn.source_info.name_stack))
    if eqn.primitive.name in ('dot_general', 'kernel') or is_lookup(eqn):
      yield here, eqn
    for body in jaxprs.inner(eqn):
      yield from products(jaxprs.parts(body)[0], here)


def _num_operands(eqn) -> int:
  if eqn.primitive.name == 'kernel':
    return eqn.params['call'].num_operands
  return 1 if eqn.primitive.name == 'gather' else 2


def describe(policy: Policy, fn, *args, **kwargs) -> str:
  """A table of every matrix product of `fn(*args)` with its rule: path, operation, shapes, rule."""
  closed = jax.make_jaxpr(fn)(*args, **kwargs)
  rows = {}
  for path, eqn in products(closed.jaxpr):
    shapes = ' '.join(str(list(var.aval.shape)).replace(' ', '') for var in eqn.invars[: _num_operands(eqn)])
    row = (path or '.', eqn.primitive.name, shapes, policy.rule_of(path, eqn))
    rows[row] = rows.get(row, 0) + 1
  table = [('path', 'operation', 'operands', 'rule', 'times'), *((*row, str(times)) for row, times in rows.items())]
  widths = [max(map(len, column)) for column in zip(*table)]
  return '\n'.join('  '.join(map(str.ljust, row, widths)).rstrip() for row in table)
