"""Mixed precision: matrix products in bfloat16 or float32, by policy."""

import functools

import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from precision import matmul
from precision.interpreter import Interpreter
from precision.policy import BFLOAT16, FLOAT32, Policy, is_lookup

KEPT = 'residual'  # the name of what the backward pass finds again; all else between is computed anew
_REDUCTIONS = frozenset({'reduce_sum', 'reduce_max'})


def mixed_precision(fn, policy: Policy):
  """Computes `fn` with the matrix products of each module in the precision that the policy says.

  In bfloat16 a product takes rounded operands and accumulates in float32, forward and backward, and its result is kept
  for the backward pass in bfloat16, as is what is named 'residual' by `jax.ad_checkpoint.checkpoint_name` (the stream
  between layers). Rows on their way to other devices (all-to-all) are bfloat16 too. Elementwise mathematics,
  reductions, norms, softmax and losses are float32 everywhere, and computed again in the backward pass from what was
  kept. Kernels that choose by dtype are called with bfloat16 operands.
  A product written with `precision=HIGHEST`, as a router's is, stays float32 whatever the policy.

  Args:
    fn: any function of pytrees of arrays.
    policy: rules by module path.

  Returns:
    A function with the arguments, the outputs and the dtypes of `fn`, differentiable in reverse mode. Gradients have
    the dtypes of the arguments.

  Raises:
    ValueError: when called, if a pattern of the policy matches no product.
  """
  if policy == Policy((('*', FLOAT32),)):
    return fn
  return Interpreter(rules(policy), _is_kept, policy.check).transform(fn)


def rules(policy: Policy) -> dict:
  """The interpreter's rules of a policy, by primitive."""
  table = {'dot_general': _dot_general, 'gather': _gather, 'kernel': _kernel, 'name': _name}
  table |= dict.fromkeys(('all_to_all', 'ragged_all_to_all'), _sent)
  return {name: functools.partial(rule, policy) for name, rule in table.items()}


def bf16(fn):
  """`mixed_precision` with bfloat16 everywhere."""
  return mixed_precision(fn, Policy((('*', BFLOAT16),)))


def _is_kept(primitive, *_, **params) -> bool:
  return primitive.name == 'name' and params['name'] == KEPT or primitive.name in _REDUCTIONS


def _dot_general(policy, site):
  eqn = site.eqn
  floats = all(var.aval.dtype in (jnp.float32, jnp.bfloat16) for var in (*eqn.invars, *eqn.outvars))
  if not floats or policy.rule_of(site.path, eqn) != BFLOAT16:
    return [checkpoint_name(output, KEPT) for output in site.bind()]
  # A parameter is there in the backward pass too: it is rounded again.
  narrow = [site.shared(_kept if source is None else _rounded, x) for x, source in zip(site.inputs, site.sources)]
  product = matmul.dot_general(*site.inputs, eqn.params['dimension_numbers'], eqn.params['out_sharding'], narrow)
  return [_kept(product).astype(eqn.outvars[0].aval.dtype)]


def _gather(policy, site):
  """What is looked up in a parameter is rounded as what is multiplied with it."""
  (output,) = site.bind()
  return [_kept(output).astype(output.dtype)] if is_rounded_lookup(policy, site) else [output]


def is_rounded_lookup(policy: Policy, site) -> bool:
  """Whether rows of a parameter are looked up in a module whose rule is bfloat16."""
  return is_lookup(site.eqn) and site.sources[0] is not None and policy.rule(site.path) == BFLOAT16


def _kernel(policy, site):
  call, inputs = site.eqn.params['call'], list(site.inputs)
  if policy.rule(site.path) == BFLOAT16:
    inputs[: call.num_operands] = [_rounded(x) for x in inputs[: call.num_operands]]
  return [output.astype(var.aval.dtype) for output, var in zip(call(*inputs), site.eqn.outvars)]


def _sent(policy, site):
  """What travels to other devices is rounded as what is multiplied there."""
  if policy.rule(site.path) != BFLOAT16:
    return site.bind()
  narrow = [_rounded(x) if x.dtype == jnp.float32 else x for x in site.inputs]
  return [output.astype(var.aval.dtype) for output, var in zip(site.bind(*narrow), site.eqn.outvars)]


def _name(policy, site):
  (value,) = site.inputs
  if site.eqn.params['name'] == KEPT and value.dtype == jnp.float32 and policy.rule(site.path) == BFLOAT16:
    return [_kept(value).astype(value.dtype)]
  return site.bind()


def _rounded(value):
  return value.astype(jnp.bfloat16)


def _kept(value):
  return checkpoint_name(_rounded(value), KEPT)
