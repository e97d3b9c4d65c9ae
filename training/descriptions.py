"""What a run says of itself before it starts."""

import jax

import data
import parallel
from training.program import Program


def of_data(dataset: data.Dataset) -> str:
  """What was read, in two lines."""
  report = dataset.report
  left_out = f', {report["left_out"]:,} pairs too long for a row left out' if report['left_out'] else ''
  return (
    f'data: {report["documents"]:,} documents ({report["duplicates"]:,} duplicates dropped{left_out}), '
    f'{report["train_bytes"] / 1e6:.2f} MB to train on, {report["validation_bytes"] / 1e6:.2f} MB held out\n'
    f'      {report["train_tokens"]:,} tokens of {report["bytes_per_token"]:.2f} bytes, vocabulary '
    f'{dataset.tokenizer.vocab_size:,}, {report["slots_used"]:.1%} of the slots used'
  )


def of_program(config, program: Program) -> str:
  """What will be trained and where, in a line or two."""
  mesh = ' x '.join(f'{name} {size}' for name, size in program.mesh.shape.items() if size > 1) or 'one device'
  trained = sum(leaf.size for leaf in jax.tree.leaves(program.task.trained(program.abstract_state.params)))
  share = '' if trained == program.model.num_params else f' ({trained / 1e6:.2f}M trained)'
  schedule = parallel.make_layout(config.mesh, program.mesh, config.zero_stage).schedule
  return (
    f'model: {program.model.num_params / 1e6:.2f}M parameters{share}, {program.lengths.run:,} steps of '
    f'{config.data.batch_tokens:,} tokens, {config.precision.dtype}, {jax.default_backend()}, {mesh}'
    + (f'\n{schedule.describe()}' if schedule else '')
  )
