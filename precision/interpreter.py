"""An interpreter of JAX functions: rules visit equations, replace them, and read, create and capture values.

A function is traced to a jaxpr, which is evaluated again, equation by equation, through jit, remat, scan, while, cond,
shard_map and functions with derivatives of their own. A rule takes the equations of one primitive:

    rule(site) -> list of outputs

`Site` tells it where the equation stands ('layers/mlp/up'), what it computes, and which operand is which parameter.
What no rule takes is evaluated as it stands.

Two things can leave or enter a function besides its arguments and results. A *capture* is a value of an equation, by
path. A *variable* is an array that a rule asks for and that a caller keeps between calls, such as a learned scale.
Inside a scan, and where one jaxpr is called several times (a layer that is jitted once and called in a Python loop),
either is stacked on a leading axis: what is in the tree does not depend on how layers are run.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from precision import control_flow, jaxprs

LAYERS = 'layers'  # logical name of the axis on which what belongs to repeated equations is stacked


@dataclasses.dataclass(frozen=True)
class Site:
  """An equation and its operands, as a rule sees it.

  Attributes:
    eqn: the equation; `eqn.primitive.name` and `eqn.params` say what it computes.
    path: the name stack from the outermost function on, such as 'layers/attention/query'.
    inputs: the operands, in the dtypes of the original function.
    sources: for each operand the path of the parameter (a leaf of the function's first argument) that it is, or is a
      view of; None for anything else.
  """

  eqn: object
  path: str
  inputs: list
  sources: list
  _frame: 'Frame'
  _ordinal: int

  def bind(self, *inputs) -> list:
    """The equation as it stands, on these inputs or on its own."""
    return jaxprs.bind(self.eqn, inputs or self.inputs)

  def variable(self, name: str, init: Callable, axes: tuple[str, ...] = ()) -> jax.Array:
    """The array that the caller keeps for this equation.

    Args:
      name: unique among the variables of this equation.
      init: function without arguments that gives the initial value; it may use the operands.
      axes: logical axis names of the value's dimensions.
    """
    return self._frame.variable(self._key(name), init, axes)

  def capture(self, name: str, value: jax.Array) -> None:
    """Hands `value` to the caller under 'path/name', or 'path' for an empty name."""
    self._frame.emit(_CAPTURE, self._key(name), value)

  def shared(self, function: Callable, value):
    """`function(value)`, computed once for all equations of one traced function that ask for the same."""
    known = self._frame.shared
    key = function, id(value)
    if key not in known:
      known[key] = value, function(value)  # holds on to `value`, whose id would otherwise be given away
    return known[key][1]

  def _key(self, name):
    # Several equations of one module, such as the two products of a plain attention, are told apart by their order.
    return jaxprs.join(self.path, '_'.join(filter(None, (name, self._ordinal and str(self._ordinal)))))


_CAPTURE, _VARIABLE = 'capture', 'variable'


class Frame:
  """What one traced function (the whole, or the body of a scan) emits, and the variables that it reads."""

  def __init__(self, variables: Mapping | None = None, counts: Mapping | None = None, closed: str = ''):
    self.variables, self.counts, self.closed = variables, counts or {}, closed
    self.emitted = collections.defaultdict(list)
    self.axes, self.shared = {}, {}
    self._taken = collections.Counter()

  @property
  def emits_variables(self) -> bool:
    return self.variables is None

  def child(self, variables=None, counts=None, closed='') -> 'Frame':
    child = Frame(variables if variables is not None else self.variables, counts or self.counts, closed or self.closed)
    child.axes = self.axes
    if counts is None:
      child._taken = self._taken
    return child

  def emit(self, kind, key, value) -> None:
    if self.closed:
      raise ValueError(
        f'{key!r} stands inside {self.closed}, out of which nothing can be captured and where no '
        'variable can be kept; choose a pattern that leaves it out'
      )
    self.emitted[kind, key].append(value)

  def variable(self, key, init, axes):
    if self.emits_variables:
      value = init()
      self.axes[key] = tuple(axes)
      self.emit(_VARIABLE, key, value)
      return value
    if key not in self.variables:
      raise KeyError(f'there is no variable {key!r}; create the variables with init() of the same function')
    return self.take(key)

  def take(self, key):
    """The next of the values that equations with this key read, one after the other."""
    if self.counts.get(key, 1) == 1:
      return self.variables[key]
    self._taken[key] += 1
    return self.variables[key][self._taken[key] - 1]

  def absorb(self, emitted, axis: int | None = None) -> None:
    """Takes over what a function traced inside has emitted; of a scan, stacked along axis 0 already."""
    for (kind, key), values in emitted.items():
      if axis is None:
        for value in values:
          self.emit(kind, key, value)
      else:
        self.emit(kind, key, _stacked(values, axis))

  def of_kind(self, kind) -> dict:
    return {key: _stacked(values, 0) for (found, key), values in self.emitted.items() if found == kind}


def _stacked(values, axis):
  return values[0] if len(values) == 1 else jnp.stack(values, axis)


class Interpreter:
  """Evaluates functions under a table of rules.

  Args:
    rules: {primitive name: rule}.
    policy: which values the backward pass keeps (as `jax.checkpoint` takes it); all else is computed again. None: what
      differentiation keeps by itself. Inside the function's own `jax.checkpoint` its own policy holds.
    check: is given the jaxpr of a function before it is evaluated, to refuse it.
  """

  def __init__(self, rules: Mapping[str, Callable], policy: Callable | None = None, check: Callable | None = None):
    self.rules, self.policy, self._check = rules, policy, check or (lambda jaxpr: None)

  def transform(self, fn):
    """`fn` under the rules, which may use no variables; what they capture is dropped."""

    @functools.wraps(fn)
    def transformed(*args, **kwargs):
      return self.call(fn, Frame({}), *args, **kwargs)

    return transformed

  def capture(self, fn):
    """Returns (result, {path: captured value}) of `fn`."""

    @functools.wraps(fn)
    def captured(*args, **kwargs):
      frame = Frame({})
      return self.call(fn, frame, *args, **kwargs), frame.of_kind(_CAPTURE)

    return captured

  def init(self, fn, *args, **kwargs):
    """Runs `fn` to create its variables.

    Returns:
      ({path: initial value}, {path: logical axes}), nested by path.
    """
    frame = Frame()
    self.call(fn, frame, *args, **kwargs)
    values = frame.of_kind(_VARIABLE)
    axes = {key: (LAYERS,) * (value.ndim - len(frame.axes[key])) + frame.axes[key] for key, value in values.items()}
    return _nested(values), _nested(axes)

  def apply(self, fn, variables, *args, **kwargs):
    """`fn` with variables that `init` created, or a caller made of them."""
    created = Frame()
    jax.eval_shape(lambda *a, **k: (self.call(fn, created, *a, **k), created.of_kind(_VARIABLE))[1], *args, **kwargs)
    counts = {key: len(values) for (kind, key), values in created.emitted.items() if kind == _VARIABLE}
    return self.call(fn, Frame(_flat(variables), counts), *args, **kwargs)

  def call(self, fn, frame: Frame, *args, **kwargs):
    """Traces and evaluates `fn`; what it emits is in the frame afterwards."""
    closed, shapes = jax.make_jaxpr(fn, return_shape=True)(*args, **kwargs)
    self._check(closed.jaxpr)
    leaves = jax.tree.leaves((args, kwargs))
    sources = [None] * len(leaves)
    if args:
      named = jax.tree_util.tree_leaves_with_path(args[0])
      sources[: len(named)] = [jax.tree_util.keystr(path, simple=True, separator='/') for path, _ in named]
    outputs = self.body(closed.jaxpr, closed.consts, leaves, sources, '', frame)
    return jax.tree.unflatten(jax.tree.structure(shapes), map(jnp.asarray, outputs))

  def body(self, jaxpr, consts, inputs, sources, path, frame, prevent_cse=True) -> list:
    """Evaluates a jaxpr whose backward pass keeps what the policy says."""
    if self.policy is None or not self.visits(jaxpr) or self._has_loops(jaxpr):
      return self.evaluate(jaxpr, consts, inputs, sources, path, '', frame)[0]
    return control_flow.rematerialised(self, jaxpr, consts, inputs, sources, path, '', frame, self.policy, prevent_cse)

  def visits(self, jaxpr) -> bool:
    """Whether a rule takes an equation of a jaxpr."""
    return jaxprs.contains(jaxpr, self.rules)

  def _has_loops(self, jaxpr) -> bool:
    return any(
      self.visits(body) and (eqn.primitive.name in jaxprs.LOOPS or self._has_loops(jaxprs.parts(body)[0]))
      for eqn in jaxpr.eqns
      for body in jaxprs.inner(eqn)
    )

  def evaluate(self, jaxpr, consts, inputs, sources, path, scope, frame) -> tuple[list, list]:
    """Evaluates a jaxpr.

    Args:
      jaxpr, consts, inputs: what to evaluate.
      sources: for each input the parameter that it is a view of, or None.
      path: name stack of the equation that holds the jaxpr, from the outermost function on.
      scope: the same, from the innermost traced function on: what JAX does not add by itself.
      frame: takes what is emitted.

    Returns:
      The outputs and their sources.
    """
    env = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *inputs]))
    origin = dict(zip(jaxpr.invars, sources))
    read = lambda var: var.val if jaxprs.is_literal(var) else env[var]
    source = lambda var: None if jaxprs.is_literal(var) else origin.get(var)
    ordinals = collections.Counter()
    for eqn in jaxpr.eqns:
      stack = str(eqn.source_info.name_stack)
      arrays, views = [read(var) for var in eqn.invars], [source(var) for var in eqn.invars]
      call = control_flow.Call(self, eqn, arrays, views, jaxprs.join(path, stack), jaxprs.join(scope, stack), frame)
      handler = control_flow.HANDLERS.get(eqn.primitive.name)
      if handler and any(map(self.visits, jaxprs.inner(eqn))):
        outputs, found = handler(call)
      else:
        outputs = self._equation(call, ordinals)
        found = views[:1] * len(outputs) if eqn.primitive.name in jaxprs.VIEWS else [None] * len(outputs)
      env.update(zip(eqn.outvars, outputs))
      origin.update(zip(eqn.outvars, found))
    return [read(var) for var in jaxpr.outvars], [source(var) for var in jaxpr.outvars]

  def _equation(self, call, ordinals):
    eqn = call.eqn
    with eqn.ctx.manager, jax.named_scope(call.scope):
      if not (rule := self.rules.get(eqn.primitive.name)):
        return jaxprs.bind(eqn, call.inputs)
      alike = eqn.primitive.name, eqn.params.get('name'), call.path
      ordinals[alike] += 1
      return rule(Site(eqn, call.path, call.inputs, call.sources, call.frame, ordinals[alike] - 1))


def _nested(flat: dict) -> dict:
  tree = {}
  for key, value in flat.items():
    *parents, last = key.split('/')
    functools.reduce(lambda node, name: node.setdefault(name, {}), parents, tree)[last] = value
  return tree


def _flat(tree) -> dict:
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }
