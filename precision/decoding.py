"""Generation under the precision of training."""

import dataclasses

import jax
import jax.numpy as jnp

from precision.interpreter import Interpreter
from precision.mixed import mixed_precision
from precision.policy import BFLOAT16, Policy


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
    """The parameters as a decode loop should hold them: unstacked, and rounded already where only products that round
    them read them, which halves what each token reads of them.

    Args:
      params: the parameters.
      stream: any tokens that `prefill` takes.
    """
    params = self.model.unstacked(params)
    rounded, looked_up = set(), set()

    def product(site):
      if self.policy.rule(site.path) == BFLOAT16:
        rounded.update(site.sources)
      else:
        looked_up.update(site.sources)
      return site.bind()

    def gather(site):
      looked_up.update(site.sources)
      return site.bind()

    interpreter = Interpreter({'dot_general': product, 'gather': gather})
    prefill = lambda params: self.model.prefill(params, stream, stream.tokens.shape[1])
    jax.eval_shape(interpreter.transform(prefill), params)
    narrow = rounded - looked_up

    def store(path, leaf):
      name = jax.tree_util.keystr(path, simple=True, separator='/')
      return leaf.astype(jnp.bfloat16) if name in narrow else leaf

    return jax.tree_util.tree_map_with_path(store, params)

  def _apply(self, fn):
    """`fn` of parameters as they are stored, and more."""
    wide = lambda leaf: leaf.astype(jnp.float32) if leaf.dtype == jnp.bfloat16 else leaf
    return mixed_precision(lambda params, *args: fn(jax.tree.map(wide, params), *args), self.policy)
