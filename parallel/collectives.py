"""What devices say to each other in a compiled program, read from its text."""

import dataclasses
import math
import re

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
  """

  kind: str
  bytes: int
  loops: tuple[int | None, ...]
  scope: str


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
      if kind == 'all-reduce' and name.startswith('all-reduce-scatter'):
        kind, rest = 'reduce-scatter', callers.get(name, '')
      scope = re.search(r'op_name="([^"]*)"', rest)
      found.append(Collective(kind, max(taken, given), loops[name], scope.group(1) if scope else ''))
  return found


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


def _loops(program) -> dict:
  """For each computation how often each loop around it runs, the outermost first."""
  callers = {}
  for name, instructions in program.items():
    for _, _, opcode, rest in instructions:
      trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', rest)
      for key, one, several in _CALLED.findall(rest):
        for called in [one] if one else re.findall(r'%([\w.-]+)', several):
          inside = ((int(trips.group(1)) if trips else None),) if opcode == 'while' and key == 'body' else ()
          if called in program:
            callers[called] = (name, inside)

  def around(name):
    if name not in callers:
      return ()
    caller, inside = callers[name]
    return around(caller) + inside

  return {name: around(name) for name in program}
