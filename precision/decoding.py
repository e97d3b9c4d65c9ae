"""Generation under the precision of training."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from precision.interpreter import Interpreter
from precision.mixed import is_rounded_lookup, rules
from precision.policy import BFLOAT16, FLOAT32, Policy


@dataclasses.dataclass(frozen=True)
class Decoder:
  """What generation asks of a model, computed under a policy; compares by value, as jit wants of static arguments.

  Attributes:
    model: has `prefill`, `extend`, `unstacked` and `length_limit`.
    policy: rules by module path.
  """

  model: object
  policy: Policy

  def prefill(self, params, stream, slots: int):
    """As the model's."""
    return self._apply(lambda params: self.model.prefill(params, stream, slots))(params)

  def extend(self, params, cache, token_B, position_B):
    """As the model's."""
    return self._apply(self.model.extend)(params, cache, token_B, position_B)

  @property
  def length_limit(self) -> int | float:
    """As the model's."""
    return self.model.length_limit

  def unstacked(self, params, stream):
    """The parameters as a decode loop should hold them.

    Unstacked, and rounded already where only products and look-ups that round them read them: half the bytes a token.

    Args:
      params: the parameters.
      stream: any tokens that `prefill` takes.
    """
    params = self.model.unstacked(params)
    rounded, exact = set(), set()

    def reads(site):
      rounds = is_rounded_lookup(self.policy, site) or (
        site.eqn.primitive.name == 'dot_general' and self.policy.rule_of(site.path, site.eqn) == BFLOAT16
      )
      (rounded if rounds else exact).update(site.sources)
      return site.bind()

    interpreter = Interpreter({'dot_general': reads, 'gather': reads})
    prefill = lambda params: self.model.prefill(params, stream, stream.tokens.shape[1])
    jax.eval_shape(interpreter.transform(prefill), params)
    narrow = rounded - exact

    def store(path, leaf):
      name = jax.tree_util.keystr(path, simple=True, separator='/')
      return leaf.astype(jnp.bfloat16) if name in narrow else leaf

    return jax.tree_util.tree_map_with_path(store, params)

  def _apply(self, fn):
    """`fn` of parameters as they are stored, and more."""
    if self.policy == Policy((('*', FLOAT32),)):
      return fn
    wide = lambda leaf: leaf.astype(jnp.float32) if leaf.dtype == jnp.bfloat16 else leaf
    table = rules(self.policy) | {'gather': functools.partial(_gather_narrow, self.policy)}
    if jax.default_backend() == 'cpu':
      # Attention of one query reads the cache once: rounding it would cost as much again.
      del table['kernel']
    interpreter = Interpreter(table, check=self.policy.check)
    return interpreter.transform(lambda params, *args: fn(jax.tree.map(wide, params), *args))


def _gather_narrow(policy, site):
  """Rounds before it looks up, which gives the same and leaves no float32 copy of the table."""
  if not is_rounded_lookup(policy, site):
    return site.bind()
  table, *where = site.inputs
  return [rows.astype(table.dtype) for rows in site.bind(table.astype(jnp.bfloat16), *where)]
