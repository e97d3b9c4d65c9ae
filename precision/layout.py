"""Row-major operands, for the matmul kernels of CPUs."""

from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint
from jax.extend import core
from jax.interpreters import batching, mlir


def row_major(x):
  """Identity; on a CPU it also fixes the order of x in memory to the order of its dimensions.

  The fast bfloat16 kernels there take row-major operands only. Left alone, XLA folds transpositions into a matmul or
  into the layout of its result, after it has chosen the kernel: the product is then 3 to 5 times slower, or fails at
  run time ("Unsupported element type for DotThunk::Execute: BF16 x BF16 = F32"). Other platforms fold as they like.
  """
  return _row_major_p.bind(x)


_row_major_p = core.Primitive('row_major')
_row_major_p.def_impl(lambda x: x)
_row_major_p.def_abstract_eval(lambda x: x)
batching.defvectorized(_row_major_p)


def _constrain(x):
  return with_layout_constraint(x, Layout(tuple(range(x.ndim))))


def _lower_on_cpu(context, x):
  # The partitioner of jax 0.10 gathers what a layout constraint is put on; a barrier at least keeps XLA from failing.
  several = getattr(context.module_context.axis_context, 'num_devices', 1) != 1
  return mlir.lower_fun(lax.optimization_barrier if several else _constrain, multiple_results=False)(context, x)


mlir.register_lowering(_row_major_p, lambda context, x: [x])
mlir.register_lowering(_row_major_p, _lower_on_cpu, platform='cpu')
