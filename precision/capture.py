"""Named intermediates out of any function, through scan and remat."""

import difflib
import fnmatch
import functools
from collections.abc import Sequence

from precision.interpreter import Interpreter

OUTPUT = 'output'  # a module marks what it returns by jax.ad_checkpoint.checkpoint_name(value, 'output')


def capture(fn, patterns: Sequence[str]):
  """Returns what modules inside a function return, beside the function's own result.

  Args:
    fn: any function of pytrees of arrays whose modules mark their outputs (see `OUTPUT`) inside `jax.named_scope`.
    patterns: globs over module paths, such as '*/mlp' or 'layers/attention/*'.

  Returns:
    A function with the arguments of `fn` that returns (result, {path: value}). What is repeated, in a scan or in a
    Python loop over a jitted layer, is stacked on a leading axis.

  Raises:
    ValueError: when called, if a pattern matches no module, or one inside a branch or a while loop.
  """

  @functools.wraps(fn)
  def captured(*args, **kwargs):
    paths = set()

    def name(site):
      if site.eqn.params['name'] == OUTPUT:
        paths.add(site.path)
        if any(fnmatch.fnmatchcase(site.path, pattern) for pattern in patterns):
          site.capture('', site.inputs[0])
      return site.bind()

    result, values = Interpreter({'name': name}).capture(fn)(*args, **kwargs)
    for pattern in patterns:
      if not fnmatch.filter(paths, pattern):
        near = difflib.get_close_matches(pattern, paths, n=3, cutoff=0.3) or sorted(paths)[:3]
        raise ValueError(f'the pattern {pattern!r} matches no module; there are for example {", ".join(near)}')
    return result, values

  return captured
