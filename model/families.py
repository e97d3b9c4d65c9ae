"""From a model config to a model: derived sizes filled in, mistakes refused, one family looked up."""

import jax

from model import decoder, feed_forward

FAMILIES = {'decoder': decoder.create}


def build(model_config, seed: int = 0):
  """Builds a model and its parameters.

  Args:
    model_config: the `model` group of a config; `vocab_size` (and `max_length` for learned positions) given.
    seed: seed of the initialisation.

  Returns:
    (model, params): pure functions of the parameters, and the nested dict of float32 arrays.

  Raises:
    ValueError: the config is inconsistent.
  """
  model = create(model_config)
  return model, model.init(jax.random.key(seed))


def create(model_config):
  """The model of a config, without parameters. Raises ValueError as `resolve` does."""
  model_config = resolve(model_config)
  return FAMILIES[model_config.family](model_config)


def resolve(model_config):
  """A copy of the config with derived sizes (0 = ...) filled in, checked.

  Raises:
    ValueError: sizes do not fit, saying what is allowed.
  """
  model_config = model_config.copy_and_resolve_references()
  check(model_config)
  with model_config.unlocked():
    model_config.head_dim = model_config.head_dim or model_config.embed_dim // model_config.num_heads
    model_config.num_kv_heads = model_config.num_kv_heads or model_config.num_heads
    if not model_config.mlp_dim:
      gated = -(-8 * model_config.embed_dim // (3 * 64)) * 64
      model_config.mlp_dim = gated if model_config.gated_mlp else 4 * model_config.embed_dim
    model_config.moe.mlp_dim = model_config.moe.mlp_dim or model_config.mlp_dim
  if model_config.vocab_size == 0:
    raise ValueError("model.vocab_size=0 means the tokenizer's size, which is not known here; set model.vocab_size")
  if model_config.positions == 'learned' and model_config.max_length == 0:
    raise ValueError('model.max_length=0 means data.sequence_length, which is not known here; set model.max_length')
  return model_config


def check(model_config) -> None:
  """Refuses sizes that do not fit each other, before data is read; those left 0 are not judged.

  Raises:
    ValueError: sizes do not fit, saying what is allowed.
  """
  heads, kv_heads = model_config.num_heads, model_config.num_kv_heads
  if not model_config.head_dim and model_config.embed_dim % heads:
    raise ValueError(
      f'model.num_heads={heads} does not divide model.embed_dim={model_config.embed_dim}; choose heads '
      'that divide it, or set model.head_dim'
    )
  if kv_heads and heads % kv_heads:
    raise ValueError(
      f'model.num_kv_heads={kv_heads} does not divide model.num_heads={heads}; choose a divisor, 0 for '
      'as many, or 1 for multi-query'
    )
  head_dim = model_config.head_dim or model_config.embed_dim // heads
  if model_config.positions == 'rope' and head_dim % 2:
    raise ValueError(f"model.positions='rope' rotates pairs, but a head is {head_dim} wide; set an even model.head_dim")
  if model_config.positions == 'sinusoidal' and model_config.embed_dim % 2:
    raise ValueError(f"model.positions='sinusoidal' needs an even model.embed_dim, not {model_config.embed_dim}")
  if model_config.activation in feed_forward.GATED and not model_config.gated_mlp:
    raise ValueError(
      f'model.activation={model_config.activation!r} needs a gate; set model.gated_mlp=True, or another activation'
    )
  if model_config.moe.num_experts:
    _check_experts(model_config.moe, model_config.num_layers)


def _check_experts(moe_config, num_layers):
  experts, k, groups = moe_config.num_experts, moe_config.experts_per_token, moe_config.num_groups
  best = moe_config.groups_per_token
  if k > experts:
    raise ValueError(
      f'model.moe.experts_per_token={k} is more than model.moe.num_experts={experts}; choose at most as many'
    )
  if experts % groups or best > groups or k > experts // groups * best:
    raise ValueError(
      f'model.moe.num_groups={groups} and groups_per_token={best} do not fit num_experts={experts} and '
      f'experts_per_token={k}: groups divide the experts, and those of a token hold at least as many as it takes'
    )
  if moe_config.first_dense + moe_config.every > num_layers:
    raise ValueError(
      f'model.moe.first_dense={moe_config.first_dense} and model.moe.every={moe_config.every} leave none of '
      f'model.num_layers={num_layers} an expert; choose smaller ones, or model.moe.num_experts=0'
    )
  if moe_config.normalize and k == 1:
    raise ValueError(
      'model.moe.normalize=True makes the only gate of a token 1, from which the router cannot learn; set '
      'model.moe.normalize=False, or model.moe.experts_per_token=2'
    )
  if moe_config.capacity_factor and moe_config.expert_capacity:
    raise ValueError(
      f'model.moe.capacity_factor={moe_config.capacity_factor} and expert_capacity={moe_config.expert_capacity} '
      'say the same twice; set one of them to 0'
    )
  if moe_config.router == 'expert_choice':
    idle = {'num_groups': 1, 'selection_bias': False, 'normalize': False, 'capacity_factor': 0, 'expert_capacity': 0}
    for key, value in (idle | {'balance_loss': 0}).items():
      if moe_config[key] != value:
        raise ValueError(
          f"model.moe.{key}={moe_config[key]} has no meaning where experts choose tokens (router='expert_choice'); set "
          f'model.moe.{key}={value}'
        )
