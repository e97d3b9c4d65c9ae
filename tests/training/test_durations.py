import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from training import durations

RUN = {'batch_tokens': 512, 'sequence_length': 64, 'run_steps': 30, 'epoch_steps': 12.5}


@pytest.mark.parametrize(
  'duration, expected',
  [
    (0, 0),
    (7, 7),
    ({'steps': 7}, 7),
    ({'tokens': 512}, 1),
    ({'tokens': 513}, 2),
    ({'tokens': 1}, 1),
    ({'tokens': 0}, 0),
    ({'examples': 8}, 1),
    ({'examples': 9}, 2),
    ({'epochs': 1}, 13),
    ({'epochs': 2}, 25),
    ({'epochs': 0.1}, 2),
    ({'share': 0.1}, 3),
    ({'share': 0.11}, 4),
    ({'share': 1}, 30),
    ({'share': 0}, 0),
  ],
)
def test_every_unit_is_converted_and_rounded_up(duration, expected):
  assert durations.steps(duration, **RUN) == expected


@given(st.integers(0, 100), st.integers(1, 10**6))
@example(7, 100)
def test_a_percentage_of_the_run_is_exact(percent, run_steps):
  assert durations.steps({'share': percent / 100}, **{**RUN, 'run_steps': run_steps}) == -(-percent * run_steps // 100)


@pytest.mark.parametrize('unit, unknown', [('share', 'run_steps'), ('epochs', 'epoch_steps')])
def test_a_unit_that_cannot_be_converted_yet_is_refused(unit, unknown):
  with pytest.raises(ValueError, match=f'a duration in {unit} has no meaning here'):
    durations.steps({unit: 0.5}, **{**RUN, unknown: None})
