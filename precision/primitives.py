"""What the rewriting has to know of JAX's primitives, by name."""

# One output, each element of which depends on one element of each input: cheap to compute again.
ELEMENTWISE = frozenset('''
  abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp convert_element_type copy cos cosh div eq
  erf erf_inv erfc exp exp2 expm1 floor ge gt integer_pow is_finite le log log1p logistic lt max min mul ne neg
  nextafter not or pow reduce_precision rem round rsqrt select_n sign sin sinh sqrt square stop_gradient sub tan tanh
  xor'''.split())

# Rearrange elements without computing: exact in any dtype.
MOVEMENT = frozenset('''
  concatenate copy dynamic_slice dynamic_update_slice expand_dims gather pad reshape rev select_n sharding_constraint
  slice split squeeze transpose unstack'''.split())

_LINEAR = MOVEMENT | {'add', 'add_any', 'broadcast_in_dim', 'convert_element_type', 'copy', 'mul', 'neg', 'reduce_sum', 'sub'}


# Take activations as they are kept, in bfloat16.
CONSUMERS = frozenset(['dot_general', 'custom_vjp_call'])


def is_linear(name, active) -> bool:
  """Whether a primitive is linear in its inputs that are `active`, a boolean for each."""
  if name == 'mul':
    return sum(active) <= 1
  if name == 'div':
    return not active[1]
  return name in _LINEAR and not (name == 'select_n' and active[0])


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
