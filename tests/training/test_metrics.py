"""metrics.jsonl is valid JSON, survives a kill, and after a resume equals a straight run's."""

import json
import math

import jax.numpy as jnp
import numpy as np
from tensorboardX.proto import event_pb2

from training.metrics import MetricsWriter, read_metrics, write_summary


def write(workdir, steps, start_step=0):
  with MetricsWriter(workdir, start_step, tensorboard=False) as writer:
    if not start_step:
      writer.write(0, {'eval/loss': 9.0})
    for step in steps:
      writer.write(step, {'loss': 1 / step, 'tokens': 10 * step})
      if step % 4 == 0:
        writer.write(step, {'eval/loss': 2 / step})


def test_a_resumed_file_equals_a_straight_one(tmp_path):
  write(tmp_path / 'straight', range(1, 13))
  write(tmp_path / 'resumed', range(1, 11))
  with (tmp_path / 'resumed/metrics.jsonl').open('a') as file:
    file.write('{"step": 11, "lo')  # killed while writing
  write(tmp_path / 'resumed', range(9, 13), start_step=8)
  straight, resumed = ((tmp_path / name / 'metrics.jsonl').read_bytes() for name in ('straight', 'resumed'))
  assert straight == resumed
  write(tmp_path / 'resumed', range(1, 13))  # killed before the first checkpoint: starts again
  assert straight == (tmp_path / 'resumed/metrics.jsonl').read_bytes()


def test_lines_are_json_and_exact(tmp_path):
  loss = np.float32(1 / 3)
  with MetricsWriter(tmp_path, tensorboard=False) as writer:
    writer.write(np.int64(1), {'tokens': 4096, 'loss': jnp.asarray(loss), 'grad_norm': jnp.asarray(jnp.nan)})
    lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()  # readable before it is closed

  def refuse(constant):
    raise AssertionError(f'{constant} is not JSON')

  assert [json.loads(line, parse_constant=refuse) for line in lines] == [
    {'step': 1, 'tokens': 4096, 'loss': float(loss), 'grad_norm': None}
  ]
  (line,) = read_metrics(tmp_path)
  assert math.isnan(line.pop('grad_norm')) and line == {'step': 1, 'tokens': 4096, 'loss': float(loss)}
  assert read_metrics(tmp_path / 'none') == []


def test_tensorboard_events_can_be_read_back(tmp_path):
  with MetricsWriter(tmp_path) as writer:
    for step in (1, 2):
      writer.write(step, {'loss': float(step)})
  with MetricsWriter(tmp_path, start_step=1) as writer:
    writer.write(2, {'loss': 5.0})
  events = []
  for path in sorted((tmp_path / 'tensorboard').iterdir()):
    content = path.read_bytes()
    while content:  # TFRecord: length (8 bytes), its checksum (4), the event, its checksum (4)
      length = int.from_bytes(content[:8], 'little')
      events.append(event_pb2.Event.FromString(content[12 : 12 + length]))
      content = content[16 + length :]
  scalars = [(event.step, event.summary.value[0].simple_value) for event in events if event.summary.value]
  restarts = [event.step for event in events if event.HasField('session_log')]
  assert scalars == [(1, 1.0), (2, 2.0), (2, 5.0)]
  assert restarts[-1] == 2  # TensorBoard forgets what came before from this step on


def test_summary_is_written_whole(tmp_path):
  write_summary(tmp_path, {'step': 3, 'final_loss': np.float32(0.5), 'eval_loss': math.inf, 'params_sha256': 'ab'})
  summary = json.loads((tmp_path / 'summary.json').read_text())
  assert summary == {'step': 3, 'final_loss': 0.5, 'eval_loss': None, 'params_sha256': 'ab'}
  assert [path.name for path in tmp_path.iterdir()] == ['summary.json']
