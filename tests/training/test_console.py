"""A terminal shows one bar with loss, speed and time left; anything else gets plain lines."""

import io

from training.console import PlainLines, ProgressBar, TimeLeft, clock_time, make_console


class Terminal(io.StringIO):
  def isatty(self):
    return True


def drive(console):
  with console:
    console.message('corpus: [bold]2.2 MB[/bold]')
    console.start(total=1000, done=100)
    console.log(110, {'loss': 3.21, 'tokens_per_second': 12345.6, 'bad_steps': 0})
    console.log(120, {'loss': 3.1, 'tokens_per_second': 12000.0, 'bad_steps': 2})
    console.evaluation(120, {'eval/loss': 3.3, 'eval/bits_per_byte': 1.9})


def test_plain_lines():
  stream = io.StringIO()
  console = make_console(stream)
  assert isinstance(console, PlainLines) and not isinstance(console, ProgressBar)
  drive(console)
  corpus, start, first, second, evaluation = stream.getvalue().splitlines()
  assert corpus == 'corpus: [bold]2.2 MB[/bold]'
  assert start == 'training from step 100 to 1,000'
  assert first == 'step 110/1,000  loss 3.2100  12,346 tokens/s'
  assert second.startswith('step 120/1,000  loss 3.1000  12,000 tokens/s  2 bad steps  0:0') and 'left' in second
  assert evaluation == 'step 120 validation  loss 3.3000  bits per byte 1.9000'


def test_progress_bar(monkeypatch):
  monkeypatch.setenv('COLUMNS', '140')
  monkeypatch.setenv('TERM', 'xterm')
  stream = Terminal()
  console = make_console(stream)
  assert isinstance(console, ProgressBar)
  drive(console)
  shown = stream.getvalue()
  assert 'corpus: [bold]2.2 MB[/bold]' in shown
  assert '120/1,000' in shown and 'loss 3.1000  12,000 tokens/s  2 bad steps' in shown and 'left' in shown
  assert 'step 120 validation  loss 3.3000' in shown


def test_time_left_does_not_count_compilation():
  now = [1000.0]
  time_left = TimeLeft(total=100, clock=lambda: now[0])
  assert time_left(10) == ''
  now[0] += 20
  assert time_left(20) == clock_time(160) == '2:40'
  assert clock_time(3725) == '1:02:05'
