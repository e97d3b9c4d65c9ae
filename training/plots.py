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
  figures = {
    'loss': plot_loss(lines),
    'learning_rate_and_grad_norm': plot_optimization(lines),
    'throughput': plot_throughput(lines),
  }
  for name, figure in figures.items():
    figure.savefig(directory / f'{name}.png')
  return [directory / f'{name}.png' for name in figures]


def plot_loss(lines: list[dict]):
  """Training loss (each point, and smoothed) with the validation points and the best of them; nats per token."""
  figure, axes = _figure('Loss', lines)
  steps, losses = _series(lines, 'loss')
  eval_steps, eval_losses = _series(lines, 'eval/loss')
  finite = np.isfinite(losses)
  smoothed = smooth(losses[finite])
  axes.plot(steps, losses, color=BLUE, alpha=0.35, linewidth=1, label='training')
  axes.plot(steps[finite], smoothed, color=BLUE, linewidth=2, label='training, smoothed', **_marker(smoothed))
  axes.plot(eval_steps, eval_losses, color=ORANGE, linewidth=1.5, marker='o', markersize=5, label='validation')
  if np.isfinite(eval_losses).any():
    best = np.nanargmin(eval_losses)
    axes.annotate(
      f'best {eval_losses[best]:.3f}',
      (eval_steps[best], eval_losses[best]),
      xytext=(0, 9),
      textcoords='offset points',
      ha='right',
      color=ORANGE,
      fontweight='bold',
    )
  _limit(axes, [smoothed, eval_losses])
  axes.set_ylabel('cross-entropy (nats per token)')
  _legend(axes)
  return figure


def plot_optimization(lines: list[dict]):
  """Learning rate on the left axis, gradient norm before clipping on a logarithmic right axis."""
  from matplotlib import ticker

  figure, axes = _figure('Learning rate and gradient norm', lines)
  norm_axes = _twin(axes)
  steps, rates = _series(lines, 'learning_rate')
  norm_steps, norms = _series(lines, 'grad_norm')
  axes.plot(steps, rates, color=BLUE, linewidth=2, **_marker(steps))
  norm_axes.plot(norm_steps, norms, color=ORANGE, linewidth=1, alpha=0.8, **_marker(norm_steps))
  axes.set_ylim(bottom=0)
  axes.ticklabel_format(axis='y', style='sci', scilimits=(-2, 3), useMathText=True)
  if (norms > 0).any():
    norm_axes.set_yscale('log')
    norm_axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    norm_axes.yaxis.set_major_formatter('{x:g}')
    norm_axes.yaxis.set_minor_locator(ticker.NullLocator())
  _color_axis(axes, 'learning rate', BLUE)
  _color_axis(norm_axes, 'gradient norm (before clipping)', ORANGE)
  return figure


def plot_throughput(lines: list[dict]):
  """Tokens per second on the left axis and model FLOPs utilisation, where the peak is known, on the right."""
  figure, axes = _figure('Throughput', lines)
  steps, speeds = _series(lines, 'tokens_per_second')
  axes.plot(steps, speeds, color=BLUE, linewidth=1.5, **_marker(steps))
  axes.set_ylim(0, 1.1 * np.nanmax(speeds) if np.isfinite(speeds).any() else 1)
  axes.yaxis.set_major_formatter('{x:,.0f}')
  _color_axis(axes, 'tokens per second', BLUE)
  mfu_steps, mfu = _series(lines, 'mfu')
  if np.isfinite(mfu).any():
    mfu_axes = _twin(axes)
    mfu_axes.plot(mfu_steps, 100 * mfu, color=ORANGE, linewidth=1.5, **_marker(mfu_steps))
    mfu_axes.set_ylim(0, max(1, 1.3 * np.nanmax(100 * mfu)))
    _color_axis(mfu_axes, 'model FLOPs utilisation (%)', ORANGE)
  return figure


def smooth(values: np.ndarray, share: float = 0.02) -> np.ndarray:
  """Rolling median, then rolling mean, over `share` of the points (at most 25) to either side.

  The median ignores spikes; windows are centred, and shrink at the ends, so that a steep curve is not shifted.
  """
  half = min(25, round(share * len(values)))
  return _rolling(np.mean, _rolling(np.median, values, half), half)


def _rolling(function, values, half):
  if not half:
    return values
  count = len(values)
  ends = [*range(half), *range(count - half, count)]
  radius = [min(i, count - 1 - i) for i in ends]
  result = np.empty(count)
  result[half : count - half] = function(np.lib.stride_tricks.sliding_window_view(values, 2 * half + 1), axis=1)
  result[ends] = [function(values[i - r : i + r + 1]) for i, r in zip(ends, radius, strict=True)]
  return result


def _series(lines, name):
  """Steps and values of the lines that have `name`; what is infinite or missing is NaN, a gap in a plot."""
  points = [(line['step'], line[name]) for line in lines if name in line]
  steps, values = np.array(points, float).reshape(-1, 2).T
  return steps, np.where(np.isfinite(values), values, math.nan)


def _figure(title, lines):
  from matplotlib import figure as figure_lib
  from matplotlib import ticker

  figure = figure_lib.Figure(figsize=(8, 4.5), dpi=150, layout='constrained', facecolor='white')
  axes = figure.add_subplot()
  axes.set_title(title, loc='left', fontsize=13, fontweight='bold', color=DARK)
  axes.set_xlabel('step', color=DARK)
  axes.set_xlim(0, 1.02 * max(1, lines[-1]['step']))
  axes.xaxis.set_major_locator(ticker.MaxNLocator(9, steps=[1, 2, 2.5, 5, 10], integer=True))
  axes.xaxis.set_major_formatter('{x:,.0f}')
  axes.grid(color='#e6e8eb', linewidth=0.8)
  axes.set_axisbelow(True)
  _style(axes)
  axes.spines['right'].set_visible(False)
  return figure, axes


def _twin(axes):
  twin = axes.twinx()
  _style(twin)
  return twin


def _style(axes):
  axes.spines[:].set_color(GREY)
  axes.spines['top'].set_visible(False)
  axes.tick_params(colors=DARK, length=3)


def _color_axis(axes, label, color):
  axes.set_ylabel(label, color=color)
  axes.tick_params(axis='y', colors=color)


def _marker(steps):
  return {'marker': 'o', 'markersize': 5} if len(steps) < 2 else {}


def _limit(axes, curves):
  """Fits the y axis to these curves alone, so that a spike of the unsmoothed one does not flatten the rest."""
  values = np.concatenate(curves)
  values = values[np.isfinite(values)]
  if values.size:
    low, high = values.min(), values.max()
    margin = 0.06 * (high - low) or 0.1
    axes.set_ylim(low - margin, high + margin)


def _legend(axes):
  drawn = [line for line in axes.get_lines() if len(line.get_xdata())]
  if drawn:
    axes.legend(handles=drawn, frameon=False, labelcolor=DARK)
