"""From a model config to a model: derived sizes filled in, mistakes refused, one family looked up."""

import importlib
import pkgutil

import jax

from model import decoder, encoder_decoder, feed_forward
from model import positions as pos
from model.remat import Remat

FAMILIES = {
  'decoder': decoder.create_decoder,
  'encoder': decoder.create_encoder,
  'encoder_decoder': encoder_decoder.create,
}


def build(model_config, seed: int = 0):
  """Builds a model and its parameters.

  Args:
    model_config: the `model` group of a config, `vocab_size` (and `max_length` for learned positions) given; or the
      name of a preset in configs/families/, with a variant or without: 'gpt2:124m'.
    seed: seed of the initialisation.

  Returns:
    (model, params): pure functions of the parameters, and the nested dict of float32 arrays.

  Raises:
    ValueError: the config is inconsistent.
  """
  model = create(preset(model_config) if isinstance(model_config, str) else model_config)
  return model, model.init(jax.random.key(seed))


def preset(name: str):
  """The `model` group of a preset, such as 'gpt2:124m'.

  Raises:
    ValueError: there is no such preset, or it has no such variant.
  """
  family, _, variant = name.partition(':')
  presets = importlib.import_module('configs.families')
  names = sorted(module.name for module in pkgutil.iter_modules(presets.__path__))
  if family not in names:
    raise ValueError(f'there is no preset {family!r}; there are {", ".join(names)}')
  return importlib.import_module(f'configs.families.{family}').get_config(variant).model


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
    if model_config.family == 'encoder_decoder':
      model_config.start_token = max(model_config.start_token, 0)
      encoder_config = model_config.encoder
      encoder_config.num_layers = encoder_config.num_layers or model_config.num_layers
      encoder_config.num_heads = encoder_config.num_heads or model_config.num_heads
      own_width = model_config.embed_dim // encoder_config.num_heads
      encoder_config.head_dim = encoder_config.head_dim or model_config.head_dim or own_width
    model_config.head_dim = model_config.head_dim or model_config.embed_dim // model_config.num_heads
    model_config.num_kv_heads = model_config.num_kv_heads or model_config.num_heads
    if not model_config.mlp_dim:
      gated = -(-8 * model_config.embed_dim // (3 * 64)) * 64
      model_config.mlp_dim = gated if model_config.gated_mlp else 4 * model_config.embed_dim
    if model_config.family == 'encoder_decoder':
      model_config.encoder.mlp_dim = model_config.encoder.mlp_dim or model_config.mlp_dim
    if model_config.moe.num_experts:
      model_config.moe.mlp_dim = model_config.moe.mlp_dim or model_config.mlp_dim
    latent_config = model_config.attention.latent
    if latent_config.key_value_rank:
      latent_config.value_dim = latent_config.value_dim or model_config.head_dim
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
  Remat.of(model_config)
  for check_part in (_check_latent, _check_positions, _check_blocks, _check_experts, _check_family):
    check_part(model_config)


def _check_latent(model_config):
  latent_config, attention_config = model_config.attention.latent, model_config.attention
  if not latent_config.key_value_rank:
    for key in ('query_rank', 'rotary_dim', 'value_dim'):
      if latent_config[key]:
        raise ValueError(
          f'model.attention.latent.{key}={latent_config[key]} is of latent attention, which is off; set '
          f'model.attention.latent.key_value_rank, or model.attention.latent.{key}=0'
        )
    return
  head_dim = model_config.head_dim or model_config.embed_dim // model_config.num_heads
  if latent_config.rotary_dim > head_dim:
    raise ValueError(
      f'model.attention.latent.rotary_dim={latent_config.rotary_dim} is a part of a head, but the head has '
      f'{head_dim} dimensions; set a larger model.head_dim'
    )
  for key, value, allowed in (
    ('family', model_config.family, ('decoder', 'encoder')),
    ('positions', model_config.positions, ('rope',)),
    ('num_kv_heads', model_config.num_kv_heads, (0, model_config.num_heads)),
    ('attention.qk_norm', attention_config.qk_norm, (False,)),
    ('attention.sinks', attention_config.sinks, (False,)),
  ):
    if value not in allowed:
      raise ValueError(
        f'model.{key}={value!r} does not go with model.attention.latent.key_value_rank='
        f'{latent_config.key_value_rank}; set model.{key}={allowed[0]!r}, or the rank to 0'
      )


def _check_positions(model_config):
  kind, embed_dim = model_config.positions, model_config.embed_dim
  if kind in ('sinusoidal', 'xlnet') and embed_dim % 2:
    raise ValueError(f'model.positions={kind!r} needs an even model.embed_dim, not {embed_dim}')
  if kind != 'learned' and model_config.position_offset:
    raise ValueError(
      f'model.position_offset={model_config.position_offset} is a row of learned positions, but model.positions='
      f"{kind!r}; set model.position_offset=0 or model.positions='learned'"
    )
  relative_config = model_config.relative
  if kind == 't5' and (
    relative_config.num_buckets % 4 or relative_config.max_distance <= relative_config.num_buckets // 2
  ):
    raise ValueError(
      f'model.relative.num_buckets={relative_config.num_buckets} must be a multiple of 4 and less than twice '
      f'model.relative.max_distance={relative_config.max_distance}; for example 32 and 128'
    )
  if kind == 'rope':
    head_dim = model_config.head_dim or embed_dim // model_config.num_heads
    latent_config = model_config.attention.latent
    _check_rope(model_config.rope, latent_config.rotary_dim if latent_config.key_value_rank else head_dim)


def _check_rope(rope_config, head_dim):
  if rope_config.fraction > 1:
    raise ValueError(f'model.rope.fraction={rope_config.fraction} is a share of a head; it must be at most 1')
  dim = pos.rotary_dim(rope_config, head_dim)
  if dim % 2 or not dim:
    raise ValueError(
      f"model.positions='rope' rotates pairs, but {dim} of a head's {head_dim} dimensions would turn; set an even "
      'model.head_dim, or another model.rope.fraction'
    )
  scaling = rope_config.scaling
  if (scaling == 'none') != (rope_config.factor == 1):
    raise ValueError(
      f'model.rope.scaling={scaling!r} and model.rope.factor={rope_config.factor} do not agree: none goes with '
      'factor 1, any other with another'
    )
  if scaling in ('dynamic', 'yarn', 'llama3') and not rope_config.original_length:
    raise ValueError(
      f'model.rope.scaling={scaling!r} needs model.rope.original_length, the tokens of a text in training'
    )
  if scaling == 'dynamic' and dim < 4:
    raise ValueError(f"model.rope.scaling='dynamic' needs at least 4 dimensions of a head that turn, not {dim}")
  if scaling == 'llama3' and rope_config.low_freq_factor >= rope_config.high_freq_factor:
    raise ValueError(
      f'model.rope.low_freq_factor={rope_config.low_freq_factor} must be below model.rope.high_freq_factor='
      f'{rope_config.high_freq_factor}'
    )


def _check_blocks(model_config):
  if model_config.activation in feed_forward.GATED and not model_config.gated_mlp:
    raise ValueError(
      f'model.activation={model_config.activation!r} needs a gate; set model.gated_mlp=True, or another activation'
    )
  where = model_config.norm_position
  if where == 'post' and not model_config.first_norm:
    raise ValueError(
      "model.first_norm=False leaves out a norm before attention, but model.norm_position='post' has none there; set "
      "model.first_norm=True or model.norm_position='pre'"
    )
  if model_config.parallel_blocks and (where != 'pre' or model_config.family == 'encoder_decoder'):
    raise ValueError(
      f'model.parallel_blocks=True is for blocks of attention and feed-forward with norms before them, not for '
      f'model.norm_position={where!r} in model.family={model_config.family!r}; set model.parallel_blocks=False'
    )


def _check_experts(model_config):
  moe_config, num_layers = model_config.moe, model_config.num_layers
  if not moe_config.num_experts:
    return
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
  if moe_config.place > moe_config.every:
    raise ValueError(
      f'model.moe.place={moe_config.place} is behind the end of a run of model.moe.every={moe_config.every} layers; '
      'choose at most as much, or 0 for the last'
    )
  if moe_config.first_dense + (moe_config.place or moe_config.every) > num_layers:
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


def _check_family(model_config):
  family = model_config.family
  if family == 'encoder_decoder':
    if model_config.token_types or model_config.positions == 'xlnet':
      raise ValueError(
        f"model.family='encoder_decoder' has no token types and no XLNet positions, but model.token_types="
        f'{model_config.token_types} and model.positions={model_config.positions!r}'
      )
    return
  encoder_config = model_config.encoder
  given = encoder_config.num_layers or encoder_config.num_heads or encoder_config.head_dim or encoder_config.mlp_dim
  tokens = model_config.start_token, model_config.forced_first_token, model_config.forced_last_token
  if given or max(tokens) >= 0:
    raise ValueError(
      f'model.encoder, model.start_token, model.forced_first_token and model.forced_last_token are for two stacks, but '
      f"model.family={family!r}; leave sizes 0 and tokens -1, or set model.family='encoder_decoder'"
    )
