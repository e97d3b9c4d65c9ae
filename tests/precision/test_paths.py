"""Patterns over parameter paths."""

import pytest

from precision import paths

PATHS = [
  'embedding/table',
  'final_norm/scale',
  'layers/attention/query/kernel',
  'layers/mlp/up/kernel',
  'layers_1/mlp/up/kernel',
  'layers_1/mlp/up/bias',
]


@pytest.mark.parametrize(
  'pattern, selected',
  [
    ('embedding', [0]),
    ('embedding/table', [0]),
    ('layers', [2, 3]),
    ('layers*', [2, 3, 4, 5]),
    ('*/mlp', [3, 4, 5]),
    ('*/mlp/*', [3, 4, 5]),
    ('layers/attention', [2]),
    ('*/kernel', [2, 3, 4]),
    ('*', range(6)),
    ('*bias', [5]),
    ('[ef]*', [0, 1]),
    ('layer', []),
    ('mlp', []),
    ('Embedding', []),
    ('table', []),
  ],
)
def test_a_pattern_matches_a_path_or_an_ancestor(pattern, selected):
  assert [path for path in PATHS if paths.matches(pattern, path)] == [PATHS[i] for i in selected]


def test_the_first_pattern_that_matches_is_chosen():
  assert paths.select(['*/up', 'layers*', 'embedding'], PATHS) == {
    PATHS[0]: 2,
    PATHS[2]: 1,
    PATHS[3]: 0,
    PATHS[4]: 0,
    PATHS[5]: 0,
  }
  assert paths.select([], PATHS) == {}


@pytest.mark.parametrize(
  'pattern, near',
  [
    ('embeding', "did you mean 'embedding'"),
    ('layers/attenton', "did you mean 'layers/attention'"),
    ('mlp', r"'\*/mlp'"),
    ('zzz', "'embedding' or 'final_norm' or 'layers'"),
  ],
)
def test_a_pattern_that_matches_nothing_is_an_error_with_near_names(pattern, near):
  with pytest.raises(ValueError, match=f'optimizer.frozen: {pattern!r} matches nothing.*{near}'):
    paths.select(['embedding', pattern], PATHS, 'optimizer.frozen')
