"""Next-token prediction. B rows, L inputs, R = L + 1 tokens a row."""

import jax
import jax.numpy as jnp

IGNORED = -1
# A row holds one token more than the model sees: the last one is only a target.
EXTRA_TOKENS = 1


def loss(objective_config, model):
  """The causal language-modelling loss of `model` (Radford et al. 2018, eq. 1).

  Args:
    objective_config: label_smoothing and z_loss are read.
    model: a model with `hidden` and `cross_entropy`.

  Returns:
    loss(params, batch, rng): batch holds int32 [B, R] `tokens`, `segment_ids`, `positions`; rng is a PRNG key for
    dropout or None. A target counts where it continues the segment of its input. The result is the mean over counted
    tokens, label smoothing and z-loss included, and a dict of float32 sums over counted tokens, plain
    cross-entropy: `loss` in nats, `tokens`, `correct`.
  """

  def loss(params, batch, rng):
    inputs = {k: v[:, :-1] for k, v in batch.items()}
    hidden = model.hidden(params, inputs['tokens'], inputs['positions'], inputs['segment_ids'], rng)
    counted = _counted(batch)
    labels = jnp.where(counted, batch['tokens'][:, 1:], IGNORED)
    result = model.cross_entropy(params, hidden, labels, objective_config.label_smoothing, objective_config.z_loss)
    tokens = jnp.sum(counted, dtype=jnp.float32)
    sums = {'loss': jnp.sum(result.nll), 'tokens': tokens,
            'correct': jnp.sum(result.correct & counted, dtype=jnp.float32)}
    return result.total / jnp.maximum(tokens, 1.0), jax.lax.stop_gradient(sums)

  return loss


def _counted(batch):
  segments = batch['segment_ids']
  return (segments[:, :-1] == segments[:, 1:]) & (segments[:, 1:] != 0)
