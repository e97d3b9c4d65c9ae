"""Compiling with few optimisations where a test looks at values only: compiling is what such a test costs."""

import jax
import pytest


def pytest_configure(config):
  config.addinivalue_line('markers', 'values_only: looks at values only, so programs need few optimisations')


@pytest.hookimpl(tryfirst=True)  # before the fixtures of modules
def pytest_runtest_setup(item):
  jax.config.update('jax_disable_most_optimizations', item.get_closest_marker('values_only') is not None)
