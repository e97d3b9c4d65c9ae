"""Counts of a model and its batch by `scaling`: what metrics, plans and sweeps call its size and its work."""

from collections.abc import Mapping

import jax

import scaling
import scaling.parameters


def parameters(model) -> scaling.Parameters:
  """The numbers of a model's parameters by kind."""
  abstract = jax.eval_shape(model.init, jax.random.key(0))
  shapes = [leaf.shape for leaf in jax.tree.leaves(abstract)]
  axes = jax.tree.leaves(model.logical_axes(), is_leaf=lambda node: isinstance(node, tuple))
  moe_config = model.config.moe
  return scaling.parameters.count(zip(shapes, axes, strict=True), moe_config.num_experts, moe_config.experts_per_token)


def towers(model) -> list:
  """The stacks of a model, the one that reads another's output last."""
  return [model.encoder, model.decoder] if model.config.family == 'encoder_decoder' else [model.tower]


def work(model, length: int, source_length: int = 0, targets: int = 0, rows: int = 1) -> scaling.Work:
  """The forward pass of rows.

  Args:
    model: of any family.
    length: tokens of a row that are read, in an encoder-decoder by the decoder.
    source_length: tokens that its encoder reads.
    targets: tokens that a second stream predicts; 0 = there is one stream, and each token has a prediction.
    rows: of the batch.
  """
  head = scaling.head_work(model.config, (targets or length) * rows)
  if model.config.family == 'encoder_decoder':
    encoder, decoder = towers(model)
    of_encoder = scaling.tower_work(encoder.config, source_length, encoder.windows, encoder.expert_layers, rows=rows)
    of_decoder = scaling.tower_work(
      decoder.config, length, decoder.windows, decoder.expert_layers, source_length, rows=rows
    )
    return of_encoder + of_decoder + head
  (tower,) = towers(model)
  of_tower = scaling.tower_work(tower.config, length, tower.windows, tower.expert_layers, targets=targets, rows=rows)
  return of_tower + head


def step_work(model, batch: Mapping) -> scaling.Work:
  """The forward pass of a batch of arrays or of their shapes, by the names that objectives give them."""
  rows, length = batch['tokens'].shape
  width = lambda name: batch[name].shape[1] if name in batch else 0
  return work(model, length, width('source_tokens'), width('targets'), rows)


def step_flops(model, batch: Mapping) -> float:
  """FLOPs of a training step, forward and backward, as `scaling.flops` counts."""
  return step_work(model, batch).training


def flops_per_token(model, sequence_length: int) -> float:
  """FLOPs of training, forward and backward, for a token of a row of `sequence_length`; in an encoder-decoder for one
  of its target and one of its source, which is as long."""
  return work(model, sequence_length, sequence_length).training / sequence_length
