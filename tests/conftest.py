"""Settings every test relies on, made before jax is imported: 8 simulated CPU devices and caches."""

import atexit
import os
import shutil
import tempfile

from harness import cache

pytest_plugins = ['harness.budgets', 'harness.optimisations', 'harness.proofs']

os.environ['JAX_PLATFORMS'] = 'cpu'
# XLA kills the process when simulated devices wait for each other longer than 40 s, which a busy machine makes them do.
flags = (
  '--xla_force_host_platform_device_count=8',
  '--xla_cpu_collective_call_terminate_timeout_seconds=600',
  '--xla_cpu_collective_call_warn_stuck_timeout_seconds=600',
)
os.environ['XLA_FLAGS'] = ' '.join([os.environ.get('XLA_FLAGS', ''), *flags]).strip()

# Workers of pytest-xdist inherit the folders of the process that starts them.
if 'PYTEST_XDIST_WORKER' not in os.environ:
  cache.prune(cache.home() / 'compiled')
  os.environ['JAX_COMPILATION_CACHE_DIR'] = str(cache.compiled_programs())
  os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.1'
  os.environ['HYPOTHESIS_STORAGE_DIRECTORY'] = str(cache.home() / 'hypothesis')
  # What the code under test caches depends on that code: each run begins with nothing.
  cache_home = tempfile.mkdtemp(prefix='meshlm-tests-')
  os.environ['XDG_CACHE_HOME'] = cache_home
  atexit.register(shutil.rmtree, cache_home, ignore_errors=True)

import hypothesis  # noqa: E402, it reads the environment

# JAX compiles inside the first example of a property, so time says nothing about it.
hypothesis.settings.register_profile(
  'meshlm', deadline=None, derandomize='CI' in os.environ, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile('meshlm')
