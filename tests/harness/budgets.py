"""What the quick tests cost, by room, against the table in tests/README.md; the dearest files run first."""

import collections
import re
import resource

import pytest

LISTED = 10  # slowest tests
WORTH_TELLING = 1.0  # processor seconds


def read_budgets(text: str) -> dict[str, float]:
  """Returns the processor seconds of each room, from the rows of a table that begin with "| `tests/ROOM` | SECONDS"."""
  return {room: float(seconds) for room, seconds in re.findall(r'^\| `tests/(\w+)` \| (\d+) \|', text, re.MULTILINE)}


def room_of(nodeid: str) -> str:
  """Returns the folder below tests/ that a test is in."""
  parts = nodeid.split('::')[0].split('/')
  return parts[1] if len(parts) > 2 else parts[0]


def summary(costs: dict[str, float], budgets: dict[str, float]) -> list[str]:
  """Lines about the processor seconds of each test and of the rooms that they are in.

  Args:
    costs: processor seconds by test id.
    budgets: processor seconds by room; a room without one is said to have none.
  """
  rooms = collections.Counter()
  for test, seconds in costs.items():
    rooms[room_of(test)] += seconds
  lines = []
  for room, seconds in rooms.most_common():
    if room not in budgets:
      told = 'NO BUDGET: give it a row in tests/README.md'
    else:
      told = f'of {budgets[room]:.0f}' + (' OVER BUDGET' if seconds > budgets[room] else '')
    if seconds >= WORTH_TELLING or 'BUDGET' in told:
      lines.append(f'{seconds:7.1f} s  {room:<20} {told}')
  slowest = sorted(costs, key=costs.get, reverse=True)[:LISTED]
  return lines + [f'{costs[test]:7.1f} s  {test}' for test in slowest if costs[test] >= WORTH_TELLING]


def processor_seconds() -> float:
  """Time that this process and the children it has waited for spent computing."""
  used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
  return sum(usage.ru_utime + usage.ru_stime for usage in used)


class Costs:
  """Measures each phase of each test where it runs and adds them up where the run is reported."""

  def __init__(self, config):
    self._readme = config.rootpath / 'tests' / 'README.md'
    self._last = 0.0
    self._costs = collections.Counter()
    self._slow = set()

  def _budgets(self):
    return read_budgets(self._readme.read_text()) if self._readme.exists() else {}

  def pytest_collection_modifyitems(self, items):
    budgets = self._budgets()
    items.sort(key=lambda item: -budgets.get(room_of(item.nodeid), 0.0))  # stable: files stay together

  def pytest_runtest_logstart(self):
    self._last = processor_seconds()

  @pytest.hookimpl(wrapper=True)
  def pytest_runtest_makereport(self):
    report = yield
    now = processor_seconds()
    report.processor_seconds, self._last = now - self._last, now
    return report

  def pytest_runtest_logreport(self, report):
    self._costs[report.nodeid] += report.processor_seconds
    if 'slow' in report.keywords:
      self._slow.add(report.nodeid)

  def pytest_terminal_summary(self, terminalreporter):
    quick = {test: seconds for test, seconds in self._costs.items() if test not in self._slow}
    lines = summary(quick, self._budgets())
    if lines:
      terminalreporter.section('processor seconds of quick tests: rooms and their budgets, slowest tests')
      for line in lines:
        terminalreporter.line(line, yellow='BUDGET' in line)


def pytest_configure(config):
  config.pluginmanager.register(Costs(config))
