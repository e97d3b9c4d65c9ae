"""Quick tests compile with few optimisations, since compiling is what most of them cost; some need all."""

import jax
import pytest


def pytest_configure(config):
  config.addinivalue_line(
    'markers', 'optimised(yes=True): whether programs are compiled as users run them; without it slow tests alone are'
  )


@pytest.hookimpl(tryfirst=True)  # before the fixtures of modules
def pytest_runtest_setup(item):
  marker = item.get_closest_marker('optimised')
  optimised = item.get_closest_marker('slow') if marker is None else marker.args in ((), (True,))
  jax.config.update('jax_disable_most_optimizations', not optimised)
