"""Host time of a training step: how long the runtime takes to start one, by the number of arrays of the state.

  python -m benchmarks.host_time [--leaves=100,300,1000,3000]

The step of `training.step` with AdamW, compiled by `parallel.compile_step`, over parameters of a few numbers each, so
that the device has next to nothing to do; the state is donated. Timed are the processor time that the calling thread
spends on the call, the call until it returns, and until the device is done; medians of 300. Writes host_time.{json,md}.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

import objectives
import parallel
from benchmarks import common
from configs import base
from model import Metric
from parallel import axes as ax
from training import optimizers
from training.state import init_state
from training.step import make_step

_COLUMNS = ('leaves', 'parameters', 'devices', 'thread_ms', 'call_ms', 'done_ms')
_HEADERS = ['arrays of the state', 'parameters', 'devices', 'thread ms', 'call ms', 'call and device ms']


def build(num_params: int, devices):
  """Step, state and batch of a task with so many parameters."""
  names = [f'weight_{i}' for i in range(num_params)]
  trees = lambda value: {name: value for name in names}

  def loss(params, batch, rng):
    mean = sum(jnp.sum(value) for value in params.values()) * jnp.mean(batch['x'])
    return mean, {'loss': Metric(mean, jnp.ones(()))}

  task = objectives.Task(
    init=lambda key: trees(jnp.ones((8, 8))),
    logical_axes=trees((ax.EMBED, ax.MLP)),
    trainable=trees(True),
    loss=loss,
    batch_axes={'x': (ax.BATCH,)},
    summarize=lambda metrics, _: metrics,
  )
  config = base.get_config()
  optimizer, schedule = optimizers.build(
    config.optimizer, task.logical_axes, run_steps=1000, warmup_steps=10, decay_steps=0
  )
  layout = parallel.Layout(parallel.make_mesh(config.mesh, devices))
  create = lambda: init_state(task, optimizer, jax.random.key(0), False)
  abstract = jax.eval_shape(create)
  shardings = parallel.state_shardings(abstract, abstract.params, task.logical_axes, layout)
  batch_shardings = parallel.batch_shardings(task.batch_axes, layout)
  step = parallel.compile_step(make_step(task, optimizer, schedule, seed=0), layout, shardings, batch_shardings)
  state = jax.jit(create, out_shardings=shardings)()
  batch = jax.device_put({'x': np.ones(8 * len(devices), np.float32)}, batch_shardings)
  return step, state, batch


def measure(num_params: int, devices, calls: int = 300) -> dict:
  """The record of a number of parameters."""
  step, state, batch = build(num_params, devices)
  leaves = len(jax.tree.leaves(state))
  state, _ = jax.block_until_ready(step(state, batch))
  thread, called, done = [], [], []
  for _ in range(calls):
    start, start_of_thread = time.perf_counter(), time.thread_time()
    state, metrics = step(state, batch)
    thread.append(time.thread_time() - start_of_thread)
    called.append(time.perf_counter() - start)
    jax.block_until_ready((state, metrics))
    done.append(time.perf_counter() - start)
  return {
    'leaves': leaves,
    'parameters': num_params,
    'devices': len(devices),
    'thread_ms': 1e3 * statistics.median(thread),
    'call_ms': 1e3 * statistics.median(called),
    'done_ms': 1e3 * statistics.median(done),
  }


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--leaves', default='100,300,1000,3000', help='arrays of the state, about')
  arguments = parser.parse_args()
  common.warn_if_busy()
  records = []
  for leaves in map(int, arguments.leaves.split(',')):
    records.append(measure(leaves // 3, jax.devices()[:1]))  # a parameter has two moments
    print(records[-1], flush=True)
  rows = [[record[key] for key in _COLUMNS] for record in records]
  common.write('host_time', {'steps': records}, common.markdown_table(_HEADERS, rows), 'python -m benchmarks.host_time')


if __name__ == '__main__':
  main()
