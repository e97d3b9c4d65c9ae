"""The plots are readable PNG files of one size, whatever the metrics."""

import math
import warnings

import matplotlib.image
import numpy as np
import pytest

from training import plots
from training.metrics import MetricsWriter

NAMES = ['loss', 'learning_rate_and_grad_norm', 'throughput']
RUNS = {
  'usual': [
    {'step': step, 'loss': 8 / step, 'learning_rate': 1e-3, 'grad_norm': 1 / step, 'tokens_per_second': 1e4, 'mfu': 0.4}
    for step in range(1, 200)
  ]
  + [{'step': 200, 'eval/loss': 0.5}],
  'one line': [{'step': 1, 'loss': 8.0, 'learning_rate': 0.0, 'grad_norm': 0.0, 'tokens_per_second': 1e4}],
  'with NaN': [
    {
      'step': step,
      'loss': math.nan if step > 2 else 1.0,
      'learning_rate': 1e-3,
      'grad_norm': math.inf,
      'tokens_per_second': 1.0,
      'mfu': math.nan,
      'eval/loss': math.nan,
    }
    for step in range(1, 5)
  ],
  'evaluation only': [{'step': 0, 'eval/loss': 8.0}],
}


@pytest.mark.parametrize('lines', RUNS.values(), ids=RUNS.keys())
def test_plots_are_png_of_the_expected_size(tmp_path, lines):
  with MetricsWriter(tmp_path, tensorboard=False) as writer:
    for line in lines:
      writer.write(line['step'], {name: value for name, value in line.items() if name != 'step'})
  with warnings.catch_warnings(action='error'):
    paths = plots.write_plots(tmp_path)
  assert paths == [tmp_path / 'plots' / f'{name}.png' for name in NAMES]
  for path in paths:
    image = matplotlib.image.imread(path)
    assert image.shape[:2] == (675, 1200)
    assert image[..., :3].min() < 0.3 < 0.9 < image[..., :3].mean()  # dark text on a mostly white page


def test_no_metrics_no_plots(tmp_path):
  assert plots.write_plots(tmp_path) == []
  assert not (tmp_path / 'plots').exists()


def test_loss_plot_shows_the_validation_points():
  (axes,) = plots.plot_loss(RUNS['usual']).axes
  lines = {line.get_label(): line.get_xydata() for line in axes.get_lines()}
  assert lines['validation'].tolist() == [[200, 0.5]]
  assert np.allclose(lines['training'], [(step, 8 / step) for step in range(1, 200)])
  assert len(lines['training, smoothed']) == 199


def test_smoothing_keeps_a_line_and_drops_a_spike():
  line = np.linspace(5, 1, 301)
  np.testing.assert_allclose(plots.smooth(line), line)
  spiked = line.copy()
  spiked[150] = 1e6
  np.testing.assert_allclose(plots.smooth(spiked), line, atol=0.02)
  noisy = line + np.random.default_rng(0).normal(0, 0.1, 301)
  assert np.std(plots.smooth(noisy) - line) < 0.05
  np.testing.assert_array_equal(plots.smooth(line[:3]), line[:3])
