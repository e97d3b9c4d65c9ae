"""What the rewriting has to know of JAX's primitives, by name."""

_LINEAR_ELEMENTWISE = frozenset({'add', 'add_any', 'convert_element_type', 'copy', 'neg', 'sub'})

# Each element of the output depends on one element of each input: cheap to compute again.
ELEMENTWISE = _LINEAR_ELEMENTWISE | {
    'abs', 'acos', 'acosh', 'and', 'asin', 'asinh', 'atan', 'atan2', 'atanh', 'cbrt', 'ceil', 'clamp', 'cos', 'cosh',
    'div', 'eq', 'erf', 'erf_inv', 'erfc', 'exp', 'exp2', 'expm1', 'floor', 'ge', 'gt', 'integer_pow', 'is_finite',
    'le', 'log', 'log1p', 'logistic', 'lt', 'max', 'min', 'mul', 'ne', 'nextafter', 'not', 'or', 'pow',
    'reduce_precision', 'rem', 'round', 'rsqrt', 'sign', 'sin', 'sinh', 'sqrt', 'square', 'stop_gradient', 'tan',
    'tanh', 'xor'}

_LINEAR_MOVEMENT = frozenset({'broadcast_in_dim', 'concatenate', 'expand_dims', 'pad', 'pvary', 'reshape', 'rev',
                              'sharding_constraint', 'slice', 'split', 'squeeze', 'transpose', 'unstack'})

# Rearrange elements without computing.
MOVEMENT = _LINEAR_MOVEMENT | {'dynamic_slice', 'dynamic_update_slice', 'gather', 'select_n'}

_LINEAR = _LINEAR_ELEMENTWISE | _LINEAR_MOVEMENT | {'reduce_sum'}

# Take activations as they are kept, in bfloat16.
CONSUMERS = frozenset(['dot_general', 'custom_vjp_call', 'kernel'])


def is_linear(eqn) -> bool:
  """Whether the derivative of an equation needs none of its array inputs."""
  name = eqn.primitive.name
  if name in ('mul', 'div'):
    return is_literal(eqn.invars[1]) or name == 'mul' and is_literal(eqn.invars[0])
  return name in _LINEAR


def is_cheap(eqn) -> bool:
  """Whether to compute an equation again rather than to keep its result."""
  name = eqn.primitive.name
  return name in ELEMENTWISE or name in MOVEMENT or (
      name == 'custom_jvp_call' and len(eqn.outvars) == 1 and not any(map(has_matmul, inner_jaxprs(eqn))))


def inner_jaxprs(eqn) -> list:
  """The jaxprs among an equation's parameters."""
  return [jaxpr for value in eqn.params.values() for jaxpr in (value if isinstance(value, (tuple, list)) else [value])
          if hasattr(jaxpr, 'eqns')]


def has_matmul(jaxpr) -> bool:
  return any(eqn.primitive.name in CONSUMERS or any(map(has_matmul, inner_jaxprs(eqn))) for eqn in jaxpr.eqns)


def flowing(jaxpr, flowing_outputs) -> set:
  """The variables of a jaxpr from which a matmul can still be reached, or an output that flows on."""
  live = {var for var, flows in zip(jaxpr.outvars, flowing_outputs) if flows and not is_literal(var)}
  for eqn in reversed(jaxpr.eqns):
    if (eqn.primitive.name in CONSUMERS or any(map(has_matmul, inner_jaxprs(eqn)))
        or any(var in live for var in eqn.outvars)):
      live.update(var for var in eqn.invars if not is_literal(var))
  return live


def is_literal(var) -> bool:
  return hasattr(var, 'val')
