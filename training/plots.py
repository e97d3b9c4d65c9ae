"""PNG plots of a run's `metrics.jsonl`: loss, learning rate and gradient norm, throughput.

matplotlib is imported when the first plot is drawn, and through its object-oriented interface, so that no global
state of pyplot is touched.
"""

import math
import pathlib

import numpy as np

from training import metrics as metrics_lib

BLUE, ORANGE, GREY, DARK = '#2a6fb0', '#d8572a', '#8a929b', '#22272e'


def write_plots(workdir) -> list[pathlib.Path]:
  """Draws `plots/{loss,learning_rate_and_grad_norm,throughput}.png` of a run directory anew.

  Returns:
    The files written; none if there are no metrics yet.
  """
  workdir = pathlib.Path(workdir)
  lines = metrics_lib.read_metrics(workdir)
  if not lines:
    return []
  directory = workdir / 'plots'
  directory.mkdir(exist_ok=True)
  figures = {'loss': plot_loss(lines), 'learning_rate_and_grad_norm': plot_optimization(lines),
             'throughput': plot_throughput(lines)}
  for name, figure in figures.items():
    figure.savefig(directory / f'{name}.png')
  return [directory / f'{name}.png' for name in figures]


def plot_loss(lines: list[dict]):
  """Training loss (each point, and smoothed) with the validation points and the best of them; nats per token."""
  figure, axes = _figure('Loss')
  steps, losses = _series(lines, 'loss')
  eval_steps, eval_losses = _series(lines, 'eval/loss')
  smoothed = smooth(losses)
  axes.plot(steps, losses, color=BLUE, alpha=0.25, linewidth=1, label='training')
  axes.plot(steps, smoothed, color=BLUE, linewidth=2, label='training, smoothed', **_marker(steps))
  axes.plot(eval_steps, eval_losses, color=ORANGE, linewidth=1.5, marker='o', markersize=5, label='validation')
  finite = np.flatnonzero(np.isfinite(eval_losses))
  if finite.size:
    best = finite[np.argmin(eval_losses[finite])]
    axes.annotate(f'{eval_losses[best]:.3f}', (eval_steps[best], eval_losses[best]), xytext=(0, 9),
                  textcoords='offset points', ha='right', color=ORANGE, fontweight='bold')
  _limit(axes, [smoothed, eval_losses])
  axes.set_ylabel('cross-entropy (nats per token)')
  _legend(axes)
  return figure


def plot_optimization(lines: list[dict]):
  """Learning rate on the left axis, gradient norm before clipping on a logarithmic right axis."""
  figure, axes = _figure('Learning rate and gradient norm')
  norm_axes = axes.twinx()
  steps, rates = _series(lines, 'learning_rate')
  norm_steps, norms = _series(lines, 'grad_norm')
  axes.plot(steps, rates, color=BLUE, linewidth=2, **_marker(steps))
  norm_axes.plot(norm_steps, norms, color=ORANGE, linewidth=1, alpha=0.8, **_marker(norm_steps))
  axes.set_ylim(bottom=0)
  axes.ticklabel_format(axis='y', style='sci', scilimits=(-2, 3), useMathText=True)
  if (norms > 0).any():
    norm_axes.set_yscale('log')
    _plain_log_ticks(norm_axes)
  _color_axis(axes, 'learning rate', BLUE)
  _color_axis(norm_axes, 'gradient norm (before clipping)', ORANGE)
  axes.set_zorder(norm_axes.get_zorder() + 1)  # the learning rate stays readable over a noisy norm
  axes.patch.set_visible(False)
  return figure


def plot_throughput(lines: list[dict]):
  """Tokens per second on the left axis and model FLOPs utilisation, where the peak is known, on the right."""
  figure, axes = _figure('Throughput')
  steps, speeds = _series(lines, 'tokens_per_second')
  axes.plot(steps, speeds, color=BLUE, linewidth=1.5, **_marker(steps))
  axes.set_ylim(0, 1.1 * np.nanmax(speeds) if np.isfinite(speeds).any() else 1)
  axes.yaxis.set_major_formatter('{x:,.0f}')
  _color_axis(axes, 'tokens per second', BLUE)
  mfu_steps, mfu = _series(lines, 'mfu')
  if np.isfinite(mfu).any():
    mfu_axes = axes.twinx()
    mfu_axes.plot(mfu_steps, 100 * mfu, color=ORANGE, linewidth=1.5, **_marker(mfu_steps))
    mfu_axes.set_ylim(0, max(1, 1.3 * np.nanmax(100 * mfu)))
    _color_axis(mfu_axes, 'model FLOPs utilisation (%)', ORANGE)
  return figure


def smooth(values: np.ndarray, share: float = 0.04) -> np.ndarray:
  """Exponential moving average over about `share` of the points, without a bias towards the start; skips NaN."""
  decay = 1 - 1 / max(1.0, share * len(values))
  total = weight = 0.0
  averages = np.full(len(values), math.nan)
  for i, value in enumerate(values):
    if math.isfinite(value):
      total, weight = decay * total + value, decay * weight + 1
    if weight:
      averages[i] = total / weight
  return averages


def _series(lines, name):
  """Steps and values of the lines that have `name`; what is infinite or missing is NaN, a gap in a plot."""
  points = [(line['step'], line[name]) for line in lines if name in line]
  steps, values = np.array(points, float).reshape(-1, 2).T
  return steps, np.where(np.isfinite(values), values, math.nan)


def _figure(title):
  import matplotlib.figure
  figure = matplotlib.figure.Figure(figsize=(8, 4.5), dpi=150, layout='constrained', facecolor='white')
  axes = figure.add_subplot()
  axes.set_title(title, loc='left', fontsize=13, fontweight='bold', color=DARK)
  axes.set_xlabel('step', color=DARK)
  axes.xaxis.set_major_formatter('{x:,.0f}')
  axes.grid(color='#e6e8eb', linewidth=0.8)
  axes.set_axisbelow(True)
  for side in ('top', 'right'):
    axes.spines[side].set_visible(False)
  for side in ('left', 'bottom'):
    axes.spines[side].set_color(GREY)
  axes.tick_params(colors=DARK, length=3)
  return figure, axes


def _color_axis(axes, label, color):
  axes.set_ylabel(label, color=color)
  axes.tick_params(axis='y', which='both', colors=color, length=3)
  axes.spines['top'].set_visible(False)


def _plain_log_ticks(axes):
  from matplotlib import ticker
  axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda x, _: f'{x:g}'))
  axes.yaxis.set_minor_formatter(ticker.NullFormatter())


def _marker(steps):
  return {'marker': 'o', 'markersize': 5} if len(steps) < 2 else {}


def _limit(axes, curves):
  """Fits the y axis to the curves without their highest percent, so that a spike does not flatten the rest."""
  values = np.concatenate(curves)
  values = values[np.isfinite(values)]
  if values.size:
    low, high = values.min(), np.quantile(values, 0.99)
    margin = 0.06 * (high - low) or 0.1
    axes.set_ylim(low - margin, high + margin)


def _legend(axes):
  drawn = [line for line in axes.get_lines() if len(line.get_xdata())]
  if drawn:
    axes.legend(handles=drawn, frameon=False, labelcolor=DARK)
