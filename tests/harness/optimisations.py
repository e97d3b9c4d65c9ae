"""Quick tests compile with few optimisations, since compiling is what most of them cost; some need all."""

import jax
import pytest


def pytest_configure(config):
  config.addinivalue_line('markers', 'optimised: programs are compiled as users run them, with all optimisations')


@pytest.hookimpl(tryfirst=True)  # before the fixtures of modules
def pytest_runtest_setup(item):
  optimised = any(item.get_closest_marker(name) for name in ('optimised', 'slow'))
  jax.config.update('jax_disable_most_optimizations', not optimised)
