"""Rewriting inside jit, remat, scan, while, cond and functions with derivatives of their own.

Each handler is called as `handler(rewriter, eqn, inputs, flowing, path, scope)`, with the values that enter the
equation, and returns those that leave it. Activations cross into a body as float32, and are activations again inside.
"""

import jax
import jax.numpy as jnp
from jax import lax

from precision import custom, primitives
from precision.lazy import activation, exact, is_active, kept


class _Body:
  """A jaxpr as a function of arrays, for JAX to trace anew: outputs are float32 where the original's are, but for
  those that came in bfloat16 from a function that chose so. Remembers which outputs are activations."""

  def __init__(self, rewriter, jaxpr, values, flowing_outputs, path):
    self.jaxpr, self.consts = _parts(jaxpr)
    self.rewriter, self.flowing_outputs, self.path = rewriter, flowing_outputs, path
    self.active = [is_active(value, var) for value, var in zip(values, self.jaxpr.invars)]
    self.active_outputs = None

  def __call__(self, *arrays):
    inputs = [activation(x) if active else x for x, active in zip(arrays, self.active)]
    outputs = self.rewriter.evaluate(self.jaxpr, self.consts, inputs, self.flowing_outputs, self.path)
    self.active_outputs = [is_active(value, var) and var.aval.dtype == jnp.float32
                           for value, var in zip(outputs, self.jaxpr.outvars)]
    return [exact(value, var) for value, var in zip(outputs, self.jaxpr.outvars)]

  def values(self, outputs):
    """Outputs of this body, traced before, as values."""
    return [activation(x) if active and flows else x
            for x, active, flows in zip(outputs, self.active_outputs, self.flowing_outputs)]


def _parts(jaxpr):
  """The bare jaxpr and its constants, of a closed jaxpr or a bare one."""
  return getattr(jaxpr, 'jaxpr', jaxpr), getattr(jaxpr, 'consts', ())


def _flows(variables, flowing) -> list:
  return [var in flowing for var in variables]


def _exact(values, variables) -> list:
  return [exact(value, var) for value, var in zip(values, variables)]


def _inline(rewriter, eqn, inputs, flowing, path, scope):
  jaxpr, consts = _parts(eqn.params.get('jaxpr', eqn.params.get('call_jaxpr')))
  inputs = _constrain(inputs, eqn.invars, eqn.params.get('in_shardings'))
  outputs = rewriter.evaluate(jaxpr, consts, inputs, _flows(eqn.outvars, flowing), path, scope)
  return _constrain(outputs, eqn.outvars, eqn.params.get('out_shardings'))


def _constrain(values, variables, shardings):
  return [lax.with_sharding_constraint(exact(value, var), sharding)
          if isinstance(sharding, jax.sharding.Sharding) else value
          for value, var, sharding in zip(values, variables, shardings or [None] * len(values))]


def _remat(rewriter, eqn, inputs, flowing, path, scope):
  params = eqn.params
  body = _Body(rewriter, params['jaxpr'], inputs, _flows(eqn.outvars, flowing), path)
  arrays = _exact(inputs, eqn.invars)
  with jax.named_scope(scope):
    return body.values(jax.checkpoint(body, prevent_cse=params['prevent_cse'], policy=params['policy'])(*arrays))


def _scan(rewriter, eqn, inputs, flowing, path, scope):
  params = eqn.params
  num_consts, num_carry = _scan_sizes(params)
  body = _Body(rewriter, params['jaxpr'], inputs, [True] * num_carry + _flows(eqn.outvars[num_carry:], flowing), path)
  arrays = _exact(inputs, eqn.invars)
  consts, carry, xs = arrays[:num_consts], arrays[num_consts:num_consts + num_carry], arrays[num_consts + num_carry:]

  def step(carry, xs):
    outputs = body(*consts, *carry, *xs)
    return outputs[:num_carry], outputs[num_carry:]

  with jax.named_scope(scope):
    carry, ys = lax.scan(step, carry, xs, length=params['length'], reverse=params['reverse'], unroll=params['unroll'])
  return body.values([*carry, *ys])


def _scan_sizes(params):
  if 'num_carry' in params:
    return params['num_consts'], params['num_carry']
  consts, carry, _ = params['ft_in'].unpack()  # jax 0.12
  return len(consts), len(carry)


def _while(rewriter, eqn, inputs, flowing, path, scope):
  params = eqn.params
  num_test, num_body = params['cond_nconsts'], params['body_nconsts']
  arrays = _exact(inputs, eqn.invars)
  num_consts = num_test + num_body
  test_consts, body_consts, carry = arrays[:num_test], arrays[num_test:num_consts], arrays[num_consts:]
  test = _Body(rewriter, params['cond_jaxpr'], inputs[:num_test] + inputs[num_consts:], [False], path)
  body = _Body(rewriter, params['body_jaxpr'], inputs[num_test:], [True] * len(carry), path)
  with jax.named_scope(scope):
    return body.values(lax.while_loop(lambda carry: test(*test_consts, *carry)[0],
                                      lambda carry: body(*body_consts, *carry), carry))


def _cond(rewriter, eqn, inputs, flowing, path, scope):
  flows = _flows(eqn.outvars, flowing)
  bodies = [_Body(rewriter, branch, inputs[1:], flows, path) for branch in eqn.params['branches']]
  index, *operands = _exact(inputs, eqn.invars)
  with jax.named_scope(scope):
    if (platforms := eqn.params.get('branches_platforms')) is None:
      outputs = lax.switch(index, bodies, *operands)
    else:
      named = {name: body for names, body in zip(platforms, bodies) for name in names or ['default']}
      outputs = lax.platform_dependent(*operands, **named)
  return bodies[0].values(outputs)


def _shard_map(rewriter, eqn, inputs, flowing, path, scope):
  params = eqn.params
  body = _Body(rewriter, params['jaxpr'], inputs, _flows(eqn.outvars, flowing), path)
  with jax.named_scope(scope):
    run = jax.shard_map(lambda *parts: tuple(body(*parts)), mesh=params['mesh'], in_specs=params['in_specs'],
                        out_specs=params['out_specs'], axis_names=params['newly_manual_axes'],
                        check_vma=params['check_vma'])
    return body.values(run(*_exact(inputs, eqn.invars)))


def _kernel(rewriter, eqn, inputs, flowing, path, scope):
  call, arrays = eqn.params['call'], [kept(value, var) for value, var in zip(inputs, eqn.invars)]
  operands = arrays[:call.num_operands]
  if any(x.dtype == jnp.bfloat16 for x in operands):
    operands = [x.astype(jnp.bfloat16) for x in operands]
  with jax.named_scope(scope):
    return call(*operands, *arrays[call.num_operands:])


def _custom_vjp(rewriter, eqn, inputs, flowing, path, scope):
  with jax.named_scope(scope):
    return custom.call_again(eqn, [kept(value, var) for value, var in zip(inputs, eqn.invars)])


def _custom_jvp(rewriter, eqn, inputs, flowing, path, scope):
  with jax.named_scope(scope):
    return custom.rewritten(rewriter, eqn, _exact(inputs, eqn.invars), path)


_HANDLERS = {'jit': _inline, 'pjit': _inline, 'closed_call': _inline, 'core_call': _inline, 'eval_jaxpr': _inline,
             'remat2': _remat, 'checkpoint': _remat, 'scan': _scan, 'while': _while, 'cond': _cond,
             'custom_vjp_call': _custom_vjp, 'shard_map': _shard_map, 'kernel': _kernel}


def handler(eqn):
  """The handler of an equation, or None."""
  if eqn.primitive.name == 'custom_jvp_call' and any(map(primitives.has_matmul, primitives.inner_jaxprs(eqn))):
    return _custom_jvp
  return _HANDLERS.get(eqn.primitive.name)
