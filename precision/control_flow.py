"""Rewriting inside jit, remat, scan, while, cond and functions with derivatives of their own.

Each handler is called as `handler(rewriter, eqn, inputs, flowing, path, scope)`, with the values that enter the
equation, and returns those that leave it.
"""

import jax
from jax import lax
import jax.numpy as jnp

from precision import custom, primitives
from precision.lazy import Lazy, exact, is_activation


def _parts(jaxpr):
  """The bare jaxpr and its constants, of a closed jaxpr or a bare one."""
  return getattr(jaxpr, 'jaxpr', jaxpr), getattr(jaxpr, 'consts', ())


def _flows(variables, flowing) -> list:
  return [var in flowing for var in variables]


def _arrays(values) -> list:
  return [value.kept() if isinstance(value, Lazy) else value for value in values]


def _function(rewriter, jaxpr, flowing_outputs, path):
  """A jaxpr as a function of arrays, for JAX to trace anew."""
  jaxpr, consts = _parts(jaxpr)
  return lambda *inputs: rewriter.evaluate(jaxpr, consts, inputs, flowing_outputs, path)


def _settle(values, variables, dtypes) -> list:
  """Activations in the dtypes that all paths agree on."""
  return [value.astype(dtype) if var.aval.dtype == jnp.float32 else value
          for value, var, dtype in zip(values, variables, dtypes)]


def _dtypes(values) -> list:
  return [value.dtype for value in values]


def _inline(rewriter, eqn, inputs, flowing, path, scope):
  jaxpr, consts = _parts(eqn.params.get('jaxpr', eqn.params.get('call_jaxpr')))
  inputs = _constrain(inputs, eqn.params.get('in_shardings'))
  outputs = rewriter.evaluate(jaxpr, consts, inputs, _flows(eqn.outvars, flowing), path, scope)
  return _constrain(outputs, eqn.params.get('out_shardings'))


def _constrain(values, shardings):
  return [lax.with_sharding_constraint(value.kept() if isinstance(value, Lazy) else value, sharding)
          if isinstance(sharding, jax.sharding.Sharding) else value
          for value, sharding in zip(values, shardings or [None] * len(values))]


def _remat(rewriter, eqn, inputs, flowing, path, scope):
  params = eqn.params
  body = _function(rewriter, params['jaxpr'], _flows(eqn.outvars, flowing), path)
  with jax.named_scope(scope):
    return jax.checkpoint(body, prevent_cse=params['prevent_cse'], policy=params['policy'])(*_arrays(inputs))


def _scan(rewriter, eqn, inputs, flowing, path, scope):
  params = eqn.params
  num_consts, num_carry = _scan_sizes(params)
  inputs = _arrays(inputs)
  consts, carry, xs = inputs[:num_consts], inputs[num_consts:num_consts + num_carry], inputs[num_consts + num_carry:]
  carry_vars = _parts(params['jaxpr'])[0].invars[num_consts:num_consts + num_carry]
  evaluate = _function(rewriter, params['jaxpr'], [True] * num_carry + _flows(eqn.outvars[num_carry:], flowing), path)
  dtypes = _dtypes(carry)

  def body(carry, xs):
    outputs = evaluate(*consts, *carry, *xs)
    return _settle(outputs[:num_carry], carry_vars, dtypes), outputs[num_carry:]

  with jax.named_scope(scope):
    carry, ys = lax.scan(body, carry, xs, length=params['length'], reverse=params['reverse'], unroll=params['unroll'])
  return [*carry, *ys]


def _scan_sizes(params):
  if 'num_carry' in params:
    return params['num_consts'], params['num_carry']
  consts, carry, _ = params['ft_in'].unpack()  # jax >= 0.12
  return len(consts), len(carry)


def _while(rewriter, eqn, inputs, flowing, path, scope):
  params = eqn.params
  inputs = _arrays(inputs)
  test_consts, rest = inputs[:params['cond_nconsts']], inputs[params['cond_nconsts']:]
  body_consts, carry = rest[:params['body_nconsts']], rest[params['body_nconsts']:]
  test = _function(rewriter, params['cond_jaxpr'], [False], path)
  body = _function(rewriter, params['body_jaxpr'], [True] * len(carry), path)
  dtypes = _dtypes(carry)
  with jax.named_scope(scope):
    return lax.while_loop(lambda carry: test(*test_consts, *carry)[0],
                          lambda carry: _settle(body(*body_consts, *carry), eqn.outvars, dtypes), carry)


def _cond(rewriter, eqn, inputs, flowing, path, scope):
  index, *operands = _arrays(inputs)
  branches = [_function(rewriter, branch, _flows(eqn.outvars, flowing), path) for branch in eqn.params['branches']]
  kinds = [_dtypes(jax.eval_shape(branch, *operands)) for branch in branches]
  dtypes = [jnp.bfloat16 if all(is_activation(jax.ShapeDtypeStruct((), kind), var.aval) for kind in kinds_of_output)
            else var.aval.dtype for var, *kinds_of_output in zip(eqn.outvars, *kinds)]
  settled = [lambda *operands, branch=branch: _settle(branch(*operands), eqn.outvars, dtypes) for branch in branches]
  with jax.named_scope(scope):
    if (platforms := eqn.params.get('branches_platforms')) is None:
      return lax.switch(index, settled, *operands)
    named = {name: branch for names, branch in zip(platforms, settled) for name in names or ['default']}
    return lax.platform_dependent(*operands, **named)


def _custom_vjp(rewriter, eqn, inputs, flowing, path, scope):
  inputs = _arrays(inputs)
  with jax.named_scope(scope):
    return custom.call_again(eqn, inputs)


def _custom_jvp(rewriter, eqn, inputs, flowing, path, scope):
  with jax.named_scope(scope):
    return custom.with_own_derivative(rewriter, eqn, [exact(x, v.aval) for x, v in zip(_arrays(inputs), eqn.invars)], path)


HANDLERS = {'jit': _inline, 'pjit': _inline, 'closed_call': _inline, 'core_call': _inline, 'remat2': _remat, 'checkpoint': _remat,
            'remat': _remat, 'scan': _scan, 'while': _while, 'cond': _cond, 'custom_vjp_call': _custom_vjp}
