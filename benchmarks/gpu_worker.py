"""A process that works on the GPU and may hang or crash there without taking the benchmark with it."""

import json
import os
import queue
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp

from benchmarks import common


def serve(handlers: dict) -> None:
  """The worker's side: answers requests on stdin until it ends.

  Args:
    handlers: kind -> `handler(request, say)`, which yields JSON-able results, one an item, in the items' order, and
      calls `say(text)` before what may hang, or `say(text, seconds)` where it hangs if nothing follows within these.
  """
  answers = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)  # what libraries print is no answer

  def send(**answer):
    answers.write(json.dumps(answer) + '\n')
    answers.flush()

  for line in sys.stdin:
    request = json.loads(line)
    for result in handlers[request['kind']](request, lambda text, seconds=None: send(doing=text, seconds=seconds)):
      send(result=result)
    send(done=True)


def die_if_broken() -> None:
  """Ends the process if the device is lost, as after a kernel's illegal access: every later call would fail."""
  try:
    jax.block_until_ready(jnp.arange(8) + 1)
  except Exception as error:
    print(f'the device is broken: {error}', file=sys.stderr)
    os._exit(os.EX_SOFTWARE)


class Died(Exception):
  """The worker ended or said nothing for too long. Attributes: doing, what it last said to be doing."""

  def __init__(self, reason: str, doing: str):
    super().__init__(f'{reason}, while doing: {doing}')
    self.doing = doing


class Worker:
  """The benchmark's side. After `Died` the next request starts a new process."""

  def __init__(self, *command: str):
    self._command, self._process, self._lines = command, None, None

  def stream(self, kind: str, timeout: float, **request):
    """Yields the results of a request.

    Args:
      kind: of the handler.
      timeout: seconds without a word after which the process is killed, unless its last word named others.
      **request: JSON-able, for the handler.

    Raises:
      Died: see there; results until then have been given.
    """
    doing, limit = 'starting', timeout
    if self._process is None:
      self._start()
    try:
      self._process.stdin.write(json.dumps({'kind': kind, **request}) + '\n')
      self._process.stdin.flush()
      while True:
        answer = json.loads(self._lines.get(timeout=limit))
        limit = answer.get('seconds') or timeout
        if 'done' in answer:
          return
        if 'result' in answer:
          yield answer['result']
        else:
          doing = answer['doing']
    except queue.Empty:
      self.kill()
      raise Died(f'nothing was heard for {limit:.0f} s', doing) from None
    except (BrokenPipeError, json.JSONDecodeError):
      self._process.wait()
      status = self._process.returncode
      self.kill()
      raise Died(f'the process ended with status {status}', doing) from None

  def kill(self) -> None:
    if self._process is not None:
      self._process.kill()
      self._process.wait()
      self._process = None
      time.sleep(1)  # until the driver has taken the memory back

  def _start(self):
    self._process = subprocess.Popen(
      self._command, cwd=common.ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    self._lines = queue.Queue()
    threading.Thread(target=_read, args=(self._process.stdout, self._lines), daemon=True).start()


def _read(file, lines):
  for line in file:
    lines.put(line)
  lines.put('')  # the end, which is no JSON
