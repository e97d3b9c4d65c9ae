"""Turns SIGTERM and SIGINT into a flag, so that a run can save before it stops."""

import signal
import threading


class StopRequest:
  """Context manager that catches SIGTERM and SIGINT while it is open and restores the former handlers after.

  The loop asks for `requested` between steps. A second SIGINT (Ctrl-C again) does not wait for that: it restores the
  former handlers and raises KeyboardInterrupt. Python handles signals in the main thread only; in another thread
  this catches nothing. After `jax.distributed.initialize`, JAX's own handler takes SIGTERM before Python's; a
  multi-process run has to ask JAX's preemption service instead.

  Attributes:
    requested: name of the signal that came ('SIGTERM'), or None.
  """

  def __init__(self):
    self.requested = None
    self._former = {}

  def __enter__(self):
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGTERM, signal.SIGINT):
        self._former[number] = signal.signal(number, self._handle)
    return self

  def __exit__(self, *exception):
    while self._former:
      signal.signal(*self._former.popitem())

  def _handle(self, number, frame):
    if number == signal.SIGINT and self.requested == 'SIGINT':
      self.__exit__()
      raise KeyboardInterrupt
    self.requested = signal.Signals(number).name
