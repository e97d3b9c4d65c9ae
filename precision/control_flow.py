"""Equations that hold jaxprs: jit, remat, scan, while, cond, shard_map, and functions with derivatives of their own.

Each handler takes a `Call` and returns the outputs of the equation and their sources.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from precision import jaxprs


@dataclasses.dataclass(frozen=True)
class Call:
  """An equation on its way through the interpreter; see `Interpreter.evaluate`."""

  interpreter: object
  eqn: object
  inputs: list
  sources: list
  path: str
  scope: str
  frame: object

  @property
  def params(self) -> dict:
    return self.eqn.params

  def unknown(self, outputs) -> tuple[list, list]:
    """The outputs, none of which is a view of a parameter."""
    return list(outputs), [None] * len(self.eqn.outvars)


def rematerialised(interpreter, jaxpr, consts, inputs, sources, path, scope, frame, policy, prevent_cse) -> list:
  """Evaluates a jaxpr under `jax.checkpoint`."""

  def run(variables, *arrays):
    child = frame.child(variables)
    outputs, _ = interpreter.evaluate(jaxpr, consts, arrays, sources, path, '', child)
    return outputs, dict(child.emitted)

  with jax.named_scope(scope):
    outputs, emitted = jax.checkpoint(run, prevent_cse=prevent_cse, policy=policy)(frame.variables, *inputs)
  frame.absorb(emitted)
  return outputs


def _inline(call):
  jaxpr, consts = jaxprs.parts(jaxprs.inner(call.eqn)[0])
  inputs = jaxprs.constrain(call.inputs, call.params.get('in_shardings'))
  outputs, sources = call.interpreter.evaluate(jaxpr, consts, inputs, call.sources, call.path, call.scope, call.frame)
  return jaxprs.constrain(outputs, call.params.get('out_shardings')), sources


def _remat(call):
  jaxpr, consts = jaxprs.parts(call.params['jaxpr'])
  return call.unknown(
    rematerialised(
      call.interpreter,
      jaxpr,
      consts,
      call.inputs,
      call.sources,
      call.path,
      call.scope,
      call.frame,
      call.params['policy'],
      call.params['prevent_cse'],
    )
  )


def _scan(call):
  params, interpreter, frame = call.params, call.interpreter, call.frame
  num_consts, num_carry = jaxprs.scan_sizes(params)
  jaxpr, jaxpr_consts = jaxprs.parts(params['jaxpr'])
  fixed = num_consts + num_carry
  consts, carry, xs = call.inputs[:num_consts], call.inputs[num_consts:fixed], call.inputs[fixed:]
  sources = [*call.sources[:num_consts], *[None] * num_carry, *call.sources[fixed:]]

  def body(child, carry, xs):
    outputs = interpreter.body(
      jaxpr, jaxpr_consts, [*consts, *carry, *xs], sources, call.path, child, prevent_cse=False
    )
    return outputs[:num_carry], (outputs[num_carry:], dict(child.emitted))

  counts = {}
  if frame.variables:
    slices = [jax.eval_shape(lambda x: x[0], x) for x in xs]
    created = jax.eval_shape(lambda carry, xs: body(_creating(frame), carry, xs)[1][1], carry, slices)
    counts = {key: len(values) for (_, key), values in created.items() if key in frame.variables}

  def step(carry, slices):
    xs, variables = slices
    child = frame.child() if frame.emits_variables else frame.child(variables, counts)
    return body(child, carry, xs)

  variables = {key: frame.take(key) for key in counts}
  with jax.named_scope(call.scope):
    carry, (ys, emitted) = lax.scan(
      step, carry, (xs, variables), length=params['length'], reverse=params['reverse'], unroll=params['unroll']
    )
  frame.absorb(emitted, axis=1)
  return call.unknown([*carry, *ys])


def _creating(frame):
  return type(frame)(closed=frame.closed)


def _closed(call, what, jaxpr, sources):
  """A jaxpr as a function out of which nothing is captured."""
  jaxpr, consts = jaxprs.parts(jaxpr)
  frame = call.frame.child(closed=what)
  return lambda *arrays: call.interpreter.evaluate(jaxpr, consts, arrays, sources, call.path, '', frame)[0]


def _while(call):
  params, inputs, sources = call.params, call.inputs, call.sources
  num_test, num_consts = params['cond_nconsts'], params['cond_nconsts'] + params['body_nconsts']
  carry = inputs[num_consts:]
  unknown = [None] * len(carry)
  test = _closed(call, 'a while loop', params['cond_jaxpr'], sources[:num_test] + unknown)
  body = _closed(call, 'a while loop', params['body_jaxpr'], sources[num_test:num_consts] + unknown)
  with jax.named_scope(call.scope):
    return call.unknown(
      lax.while_loop(
        lambda carry: test(*inputs[:num_test], *carry)[0],
        lambda carry: body(*inputs[num_test:num_consts], *carry),
        carry,
      )
    )


def _cond(call):
  index, *operands = call.inputs
  branches = [_closed(call, 'a branch', branch, call.sources[1:]) for branch in call.params['branches']]
  with jax.named_scope(call.scope):
    if (platforms := call.params.get('branches_platforms')) is None:
      return call.unknown(lax.switch(index, branches, *operands))
    named = {name: branch for names, branch in zip(platforms, branches) for name in names or ['default']}
    return call.unknown(lax.platform_dependent(*operands, **named))


def _shard_map(call):
  params = call.params
  body = _closed(call, 'a shard_map', params['jaxpr'], call.sources)
  with jax.named_scope(call.scope):
    return call.unknown(
      jax.shard_map(
        lambda *arrays: tuple(body(*arrays)),
        mesh=params['mesh'],
        in_specs=tuple(params['in_specs']),
        out_specs=tuple(params['out_specs']),
        axis_names=params['newly_manual_axes'],
        check_vma=params['check_vma'],
      )(*call.inputs)
    )


_OWN = 'a function with a derivative of its own'


def _own_derivative(call):
  """Evaluates a `custom_jvp` or `custom_vjp` function and, when differentiated, the derivative that it has."""
  eqn = call.eqn
  floats = [jnp.issubdtype(var.aval.dtype, jnp.inexact) for var in eqn.invars]
  evaluate = _closed(call, _OWN, jaxprs.inner(eqn)[0], call.sources)

  def gradients(inputs, cotangents):
    def of_floats(*chosen):
      chosen = iter(chosen)
      return jaxprs.bind(eqn, [next(chosen) if is_float else x for x, is_float in zip(inputs, floats)])

    return jax.vjp(of_floats, *[x for x, is_float in zip(inputs, floats) if is_float])[1](cotangents)

  @jax.custom_vjp
  def run(*inputs):
    return evaluate(*inputs)

  def backward(inputs, cotangents):
    derivative = jax.make_jaxpr(gradients)(inputs, cotangents)
    arrays = jax.tree.leaves((inputs, cotangents))
    found = iter(_closed(call, _OWN, derivative, [None] * len(arrays))(*arrays))
    return tuple(next(found) if is_float else None for is_float in floats)

  run.defvjp(lambda *inputs: (run(*inputs), inputs), backward)
  with jax.named_scope(call.scope):
    return call.unknown(run(*call.inputs))


HANDLERS = {
  'jit': _inline,
  'pjit': _inline,
  'closed_call': _inline,
  'core_call': _inline,
  'eval_jaxpr': _inline,
  'remat2': _remat,
  'checkpoint': _remat,
  'scan': _scan,
  'while': _while,
  'cond': _cond,
  'shard_map': _shard_map,
  'custom_jvp_call': _own_derivative,
  'custom_vjp_call': _own_derivative,
}
