"""Turns SIGTERM and SIGINT into a flag, so that a run can save before it stops."""

import os
import signal
import threading

import jax

import parallel


class StopRequest:
  """Context manager that catches SIGTERM and SIGINT while it is open and restores the former handlers after.

  The loop asks `stops` after each step. A second SIGINT (Ctrl-C again) does not wait for that: it restores the
  former handlers and raises KeyboardInterrupt. Python handles signals in the main thread only; in another thread
  this catches nothing. One of several processes leaves SIGTERM to JAX, whose handler tells the others, and passes
  SIGINT on to it as SIGTERM.

  Attributes:
    requested: name of the signal that came ('SIGTERM'), or None.
  """

  def __init__(self):
    self.requested = None
    self._former = {}
    self._many = jax.process_count() > 1

  def __enter__(self):
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGINT,) if self._many else (signal.SIGTERM, signal.SIGINT):
        self._former[number] = signal.signal(number, self._handle)
    return self

  def stops(self, step: int) -> bool:
    """Whether the run stops after this step: the same for all processes, which ask after each step."""
    return parallel.hosts.stops(step) if self._many else self.requested is not None

  def __exit__(self, *exception):
    while self._former:
      signal.signal(*self._former.popitem())

  def _handle(self, number, frame):
    if number == signal.SIGINT and self.requested == 'SIGINT':
      self.__exit__()
      raise KeyboardInterrupt
    self.requested = signal.Signals(number).name
    if self._many:
      os.kill(os.getpid(), signal.SIGTERM)
