"""SIGTERM and SIGINT become a flag while the context is open, and only then."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

from training.signals import StopRequest

ROOT = pathlib.Path(__file__).resolve().parents[2]
LOOP = """
import time
from training.signals import StopRequest
with StopRequest() as stop:
  print('ready', flush=True)
  while not stop.requested:
    time.sleep(0.01)
  print('saving after', stop.requested, flush=True)
  if stop.requested == 'SIGINT':
    time.sleep(60)
raise SystemExit(75)
"""


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_a_flag_and_the_former_handlers_come_back(number):
  former = signal.getsignal(number)
  with StopRequest() as stop:
    assert stop.requested is None
    os.kill(os.getpid(), number)
    assert stop.requested == number.name
  assert signal.getsignal(number) is former


def start():
  process = subprocess.Popen(
    [sys.executable, '-c', LOOP], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
  )
  assert process.stdout.readline() == 'ready\n'
  return process


def test_sigterm_lets_the_loop_save_and_choose_its_status():
  process = start()
  process.send_signal(signal.SIGTERM)
  output, _ = process.communicate(timeout=20)
  assert output == 'saving after SIGTERM\n' and process.returncode == 75


def test_a_second_interrupt_aborts():
  process = start()
  process.send_signal(signal.SIGINT)
  assert process.stdout.readline() == 'saving after SIGINT\n'
  process.send_signal(signal.SIGINT)
  _, errors = process.communicate(timeout=20)
  assert 'KeyboardInterrupt' in errors and process.returncode == -signal.SIGINT
