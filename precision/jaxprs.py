"""What an interpreter has to know of JAX's equations, by the names of their primitives."""

import jax
import jax.numpy as jnp

# The output holds elements of the first input, moved or converted: a view of a parameter stays that parameter.
VIEWS = frozenset(
  {
    'broadcast_in_dim',
    'convert_element_type',
    'copy',
    'dynamic_slice',
    'name',
    'optimization_barrier',
    'pvary',
    'reduce_precision',
    'reshape',
    'rev',
    'sharding_constraint',
    'slice',
    'split',
    'squeeze',
    'transpose',
    'unstack',
  }
)

LOOPS = frozenset({'remat2', 'checkpoint', 'scan', 'while'})


def parts(jaxpr):
  """The bare jaxpr and its constants, of a closed jaxpr or a bare one."""
  return getattr(jaxpr, 'jaxpr', jaxpr), getattr(jaxpr, 'consts', ())


def inner(eqn) -> list:
  """The jaxprs among an equation's parameters."""
  return [
    jaxpr
    for value in eqn.params.values()
    for jaxpr in (value if isinstance(value, (tuple, list)) else [value])
    if hasattr(jaxpr, 'eqns')
  ]


def contains(jaxpr, names) -> bool:
  """Whether a jaxpr holds an equation of one of these primitives, at any depth."""
  return any(eqn.primitive.name in names or any(contains(body, names) for body in inner(eqn)) for eqn in jaxpr.eqns)


def is_literal(var) -> bool:
  return hasattr(var, 'val')


def is_float(var) -> bool:
  return jnp.issubdtype(var.aval.dtype, jnp.floating)


def bind(eqn, inputs) -> list:
  """Evaluates one equation on arrays as it stands; returns the list of its outputs."""
  outputs = eqn.primitive.bind(*inputs, **eqn.primitive.get_bind_params(eqn.params))
  return list(outputs) if eqn.primitive.multiple_results else [outputs]


def join(outer: str, inside: str) -> str:
  """Two name stacks as one path."""
  return f'{outer}/{inside}' if outer and inside else outer or inside


def constrain(values, shardings) -> list:
  """The values, pinned where a jit inside the function says how they are sharded."""
  return [
    jax.lax.with_sharding_constraint(value, sharding) if isinstance(sharding, jax.sharding.Sharding) else value
    for value, sharding in zip(values, shardings or [None] * len(values))
  ]


def scan_sizes(params) -> tuple[int, int]:
  """The numbers of constants and of carried values of a scan."""
  if 'num_carry' in params:
    return params['num_consts'], params['num_carry']
  consts, carry, _ = params['ft_in'].unpack()  # jax 0.12
  return len(consts), len(carry)
