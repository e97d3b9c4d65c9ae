"""What devices say to each other in a compiled program, read from its text."""

import dataclasses
import math
import re
from collections.abc import Mapping

import numpy as np

KINDS = (
  'all-gather',
  'all-reduce',
  'all-to-all',
  'collective-broadcast',
  'collective-permute',
  'ragged-all-to-all',
  'reduce-scatter',
)
_BITS = {'pred': 8, 'c64': 64, 'c128': 128, 'token': 0, 'opaque': 0}
_COMPUTATION = re.compile(r'^(ENTRY )?%?([^\s(]+) \(.*\) -> .* \{$')
_INSTRUCTION = re.compile(r'^\s+(?:ROOT )?%?([^\s=]+) = (.*)$')
_OPCODE = re.compile(r'^([\w-]+)\(')
_CALLED = re.compile(r'(\w+)=(?:%([\w.-]+)|\{(%[^}]*)\})')


@dataclasses.dataclass(frozen=True)
class Collective:
  """One collective of a program.

  Attributes:
    kind: one of `KINDS`.
    bytes: of the arrays on one device, of the larger side: what all-gather returns, what reduce-scatter takes.
    loops: how often each loop around it runs, the outermost first; None where the compiler does not know.
    scope: name stack of the operation in the program it was compiled from.
    group: devices that its first group joins, numbered as in `mesh.devices.flat`; () = all devices of the program.
    pairs: of a collective-permute, (from, to), which differ.
  """

  kind: str
  bytes: int
  loops: tuple[int | None, ...]
  scope: str
  group: tuple[int, ...] = ()
  pairs: tuple[tuple[int, int], ...] = ()

  @property
  def times(self) -> int:
    """How often it runs in a call of the program; loops of unknown length count once."""
    return math.prod(trips or 1 for trips in self.loops)

  def mesh_axes(self, mesh_shape: Mapping[str, int]) -> tuple[str, ...]:
    """The mesh axes along which its devices differ, in the order of the mesh.

    Args:
      mesh_shape: sizes by name, the order of which numbers the devices, as `jax.sharding.Mesh.shape`.
    """
    if not self.group and not self.pairs:
      return tuple(name for name, size in mesh_shape.items() if size > 1)
    sizes = tuple(mesh_shape.values())
    places = lambda numbers: np.stack(np.unravel_index(np.asarray(numbers), sizes), axis=-1)
    if self.pairs:
      differ = np.any(places([a for a, _ in self.pairs]) != places([b for _, b in self.pairs]), axis=0)
    else:
      found = places(self.group)
      differ = np.any(found != found[:1], axis=0)
    return tuple(name for name, differs in zip(mesh_shape, differ, strict=True) if differs)


def collectives(text: str) -> list[Collective]:
  """Every collective of a compiled program, in no particular order.

  Two forms of TPU programs are read as what they are: a fusion of an all-reduce with a slice of its result is a
  reduce-scatter, and a chain of fusions that hold one all-gather, from its start to its end, is one all-gather.

  Args:
    text: the optimised HLO of one module, as `jax.stages.Compiled.as_text` gives it.
  """
  program = _parse(text)
  loops = _loops(program)
  callers = {called: rest for lines in program.values() for _, _, _, rest in lines for called in _fused(rest)}
  found, chains = [], set()
  for name, instructions in program.items():
    types = {instruction: type_ for instruction, type_, _, _ in instructions}
    for _, type_, opcode, rest in instructions:
      kind = opcode.removesuffix('-start')
      if kind not in KINDS:
        continue
      if chain := re.search(r'channel_id=(\d+).*chain_id="(\d+)"', rest):
        if chain.groups() in chains:
          continue
        chains.add(chain.groups())
      taken = sum(_bytes(types.get(operand, '')) for operand in _operands(rest))
      # The result of a start is a pair of what it takes and what it will give; of an all-reduce it may be the latter.
      paired = opcode != kind and (kind != 'all-reduce' or type_.startswith('(('))
      given = _bytes(type_) - (taken if paired else 0)
      group, pairs = _group(rest), _pairs(rest)
      if kind == 'all-reduce' and name.startswith('all-reduce-scatter'):
        kind, rest = 'reduce-scatter', callers.get(name, '')
      scope = re.search(r'op_name="([^"]*)"', rest)
      scope = scope.group(1) if scope else ''
      found.append(Collective(kind, max(taken, given), loops[name], scope, group, pairs))
  return found


def _group(rest) -> tuple[int, ...]:
  """The first of `replica_groups`, in one of three forms: listed, {{0,1},{2,3}}; counted out, [2,2]<=[4] or
  [2,2]<=[2,2]T(1,0); axes of a mesh, mesh['a'=2,'b'=4] {'b'}, of which a part may be named: 'b':(1)2 its outer half."""
  if listed := re.search(r'replica_groups=\{\{([\d,]*)\}', rest):
    return tuple(map(int, listed.group(1).split(',')))
  if counted := re.search(r'replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?', rest):
    shape, of, order = ([int(n) for n in part.split(',')] if part else None for part in counted.groups())
    numbers = np.arange(math.prod(of)).reshape(of)
    numbers = numbers if order is None else numbers.transpose(order)
    return tuple(numbers.reshape(-1, shape[-1])[0].tolist())
  if named := re.search(r'replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}', rest):
    return _group_of_mesh(*named.groups())
  if unknown := re.search(r'replica_groups=(?!\{\}).{0,80}', rest):
    raise ValueError(f'replica groups of an unknown form: {unknown.group()}')
  return ()


def _group_of_mesh(mesh: str, axes: str) -> tuple[int, ...]:
  sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh)}
  numbers = np.arange(math.prod(sizes.values())).reshape(tuple(sizes.values()))
  index = [slice(0, 1)] * len(sizes)
  for name, before, size in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", axes):
    whole, place = sizes[name], list(sizes).index(name)
    inner = whole // (int(before) * int(size)) if size else 1
    index[place] = slice(0, int(size) * inner if size else whole, inner)
  return tuple(numbers[tuple(index)].ravel().tolist())


def _pairs(rest) -> tuple[tuple[int, int], ...]:
  found = re.search(r'source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}', rest)
  if not found:
    return ()
  return tuple((int(a), int(b)) for a, b in re.findall(r'\{(\d+),(\d+)\}', found.group(1)) if a != b)


def _fused(rest) -> list[str]:
  return re.findall(r'\bcalls=%([\w.-]+)', rest)


def _parse(text) -> dict:
  """For each computation its instructions: name, type, opcode and the rest of the line; the entry is named ''."""
  program, current = {}, None
  for line in text.splitlines():
    if computation := _COMPUTATION.match(line):
      current = program.setdefault('' if computation.group(1) else computation.group(2), [])
    elif current is not None and (instruction := _INSTRUCTION.match(line)):
      type_, rest = _split_type(instruction.group(2))
      if opcode := _OPCODE.match(rest):
        current.append((instruction.group(1), type_, opcode.group(1), rest))
  return program


def _split_type(text):
  """Splits 'f32[2]{0} add(...)' or '(f32[2], s32[]) while(...)' after the type."""
  depth = 0
  for place, letter in enumerate(text):
    depth += (letter in '([{') - (letter in ')]}')
    if letter == ' ' and depth == 0:
      return text[:place], text[place + 1 :]
  return text, ''


def _operands(rest):
  """The names between the first parenthesis and the one that closes it."""
  depth = 0
  for place, letter in enumerate(rest):
    depth += (letter == '(') - (letter == ')')
    if letter == ')' and depth == 0:
      return re.findall(r'%([\w.-]+)', rest[:place])
  return []


def _bytes(type_) -> int:
  total = 0
  for name, sizes in re.findall(r'(\w+)\[([\d,<=]*)\]', type_):
    bits = _BITS.get(name) or int((re.search(r'\d+', name) or [0])[0])
    total += bits * math.prod(int(size) for size in re.findall(r'\d+', sizes))
  return total // 8


def _trips(program, rest) -> int | None:
  """How often a loop runs: as the compiler says; or the constant below which its counter stays, since JAX counts from 0
  by 1."""
  if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', rest):
    return int(known.group(1))
  condition = re.search(r'condition=%([\w.-]+)', rest)
  lines = {name: (opcode, text) for name, _, opcode, text in program.get(condition.group(1), ())} if condition else {}
  for opcode, text in lines.values():
    if opcode == 'compare' and 'direction=LT' in text:
      constants = [lines[name][1] for name in _operands(text) if lines.get(name, ('',))[0] == 'constant']
      if len(constants) == 1 and (bound := re.match(r'constant\((\d+)\)', constants[0])):
        return int(bound.group(1))
  return None


def _loops(program) -> dict:
  """For each computation how often each loop around it runs, the outermost first."""
  callers = {}
  for name, instructions in program.items():
    for _, _, opcode, rest in instructions:
      trips = _trips(program, rest) if opcode == 'while' else None
      for key, one, several in _CALLED.findall(rest):
        for called in [one] if one else re.findall(r'%([\w.-]+)', several):
          inside = (trips,) if opcode == 'while' and key == 'body' else ()
          if called in program:
            callers[called] = (name, inside)

  def around(name):
    if name not in callers:
      return ()
    caller, inside = callers[name]
    return around(caller) + inside

  return {name: around(name) for name in program}
