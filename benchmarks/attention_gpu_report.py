"""Table and plot of attention_gpu."""

import pathlib

from benchmarks import common

# TFLOP/s of FlashAttention-2, cuDNN 9 and FlashAttention-3 on an H100 (Shah et al. 2024, figures 5 and 6), and what
# this project aims at on an H200, by direction, head_dim, causal and length, heads and kv_heads being equal.
PUBLISHED = {
  ('forward', 128, True, 4096): ((319, 518, 579), 580),
  ('forward', 128, True, 16384): ((335, 539, 616), 620),
  ('forward', 64, True, 4096): ((284, 363, 420), 420),
  ('forward', 64, True, 16384): ((299, 388, 473), 475),
  ('forward', 128, False, 4096): ((368, 609, 638), 650),
  ('forward', 128, False, 16384): ((370, 595, 648), 650),
  ('backward', 128, False, 4096): ((310, 499, 542), 560),
  ('backward', 128, False, 16384): ((322, 516, 561), 560),
  ('backward', 64, False, 4096): ((279, 417, 453), 470),
  ('backward', 64, False, 16384): ((291, 433, 474), 470),
}
DIRECTIONS = ('forward', 'backward')


def table(results: dict, contestants) -> str:
  """Markdown: numerics that failed, the ceiling, and a row for each cell and direction in TFLOP/s."""
  rows = []
  for cell in results['cells'].values():
    for direction in DIRECTIONS:
      speeds = {name: _speed(cell, name, direction) for name in contestants}
      shown = [_shown(cell, name, direction) for name in contestants]
      rows.append(
        [cell['name'], direction, *shown, _ratio(speeds['ours'], speeds['cudnn']), *_published(cell, direction)]
      )
  headers = ['cell', 'direction', *contestants, 'ours / cudnn', 'target', 'published FA2/cuDNN/FA3 (H100)']
  ceiling = results['matmul_tflops']
  parts = [
    f'Numerics: {_numerics(results["numerics"])}',
    f'Matmul ceiling: {"not measured" if ceiling is None else f"{ceiling:.0f} TFLOP/s"}',
    f'TFLOP/s, medians:\n\n{common.markdown_table(headers, rows)}',
  ]
  if reasons := _reasons(results):
    parts.append('Why cells have no figure:\n\n' + '\n'.join(f'* {reason}' for reason in reasons))
  if deaths := results['deaths']:
    parts.append('The process hung or crashed and went on without:\n\n' + '\n'.join(f'* {death}' for death in deaths))
  if missing := results['not_measured']:
    parts.append(f'Not measured: {", ".join(missing)}')
  return '\n\n'.join(parts)


def plot(results: dict, contestants, path: pathlib.Path) -> None:
  """A PNG: forward and backward for head_dim 64 and 128, causal with equal heads, TFLOP/s over the length."""
  import matplotlib

  matplotlib.use('Agg')
  from matplotlib import pyplot

  figure, axes = pyplot.subplots(2, 2, figsize=(11, 8), sharex=True)
  for row, direction in zip(axes, DIRECTIONS, strict=True):
    for axis, head_dim in zip(row, (64, 128), strict=True):
      _panel(axis, results, contestants, direction, head_dim)
  axes[0][0].legend(fontsize='small')
  figure.suptitle('Causal attention, bfloat16, as many key heads as heads')
  figure.tight_layout()
  figure.savefig(path, dpi=120)
  pyplot.close(figure)


def _panel(axis, results, contestants, direction, head_dim):
  cells = [
    cell
    for cell in results['cells'].values()
    if cell['head_dim'] == head_dim and cell['causal'] and cell['heads'] == cell['kv_heads']
  ]
  for name in contestants:
    points = sorted((cell['length'], speed) for cell in cells if (speed := _speed(cell, name, direction)))
    if points:
      axis.plot(*zip(*points, strict=True), marker='o', label=name, linewidth=2.5 if name == 'ours' else 1.2)
  if results['matmul_tflops']:
    axis.axhline(results['matmul_tflops'], linestyle='--', color='grey', label='matmul ceiling')
  axis.set(title=f'{direction}, head_dim {head_dim}', xlabel='tokens', ylabel='TFLOP/s')
  axis.set_xscale('log', base=2)
  axis.set_ylim(bottom=0)
  axis.grid(alpha=0.3)


def numerics_line(name: str, record: dict) -> str:
  """A case of `gpu_numerics` in one line: ||got - want|| / ||want|| by result, or what is wrong."""
  if record['passed']:
    return f'agrees: {name}: ' + ', '.join(f'{what} {far:.1e}' for what, far in record['distances'].items())
  return f'FAILS: {name}: {record.get("error") or "; ".join(record["faults"])}'


def _speed(cell, name, direction):
  return cell['contestants'].get(name, {}).get(direction, {}).get('tflops')


def _shown(cell, name, direction):
  speed = _speed(cell, name, direction)
  if 'wrong' in cell['contestants'].get(name, {}).get(direction, {}):
    return 'wrong'
  return '' if speed is None else f'{speed:.3g}'


def _ratio(ours, theirs):
  return f'{ours / theirs:.2f}' if ours and theirs else ''


def _published(cell, direction):
  key = (direction, cell['head_dim'], cell['causal'], cell['length'])
  if cell['heads'] != cell['kv_heads'] or key not in PUBLISHED:
    return '', ''
  published, target = PUBLISHED[key]
  return target, '/'.join(map(str, published))


def _numerics(numerics):
  failed = {name: record for name, record in numerics.items() if not record['passed']}
  if not failed:
    return f'all {len(numerics)} cases agree with the definition'
  lines = [f'* {numerics_line(name, record)}' for name, record in failed.items()]
  return '\n'.join([f'{len(failed)} of {len(numerics)} cases FAIL', '', *lines])


def _reasons(results):
  """Each error once, with the cells it was met in."""
  cells = {}
  for cell in results['cells'].values():
    for name, directions in cell['contestants'].items():
      for direction, record in directions.items():
        if reason := record.get('error') or 'wrong' in record and f'wrong: {"; ".join(record["wrong"])}':
          cells.setdefault(f'{name}, {direction}: {reason}', []).append(cell['name'])
  return [
    f'{reason} ({met[0] if len(met) == 1 else f"{len(met)} cells, first {met[0]}"})' for reason, met in cells.items()
  ]
