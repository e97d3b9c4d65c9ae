"""Switch Transformers (Fedus et al. 2022): T5 whose every so manieth layer sends each token to one expert."""

from interop.families import t5
from interop.family import Family
from interop.fields import ACTIVATIONS, Field, FieldError, Fields, free, key, must
from interop.rules import dense, table


def _sparse(num_layers, step):
  """The layers with experts: in each run of `step` the second."""
  return [i for i in range(num_layers) if step and i % step == min(1, step - 1)]


def _sizes(values):
  """Layers of the encoder and of the decoder, each with the length of its runs; 0 = no layer has experts."""
  encoder = values.get('num_layers', 12)
  decoder = values.get('num_decoder_layers', 12) or encoder
  steps = []
  for stack, layers in (('encoder', encoder), ('decoder', decoder)):
    sparse = values.get(f'num_sparse_{stack}_layers', 3)
    steps.append(values.get(f'{stack}_sparse_step', layers // sparse if sparse else layers))
  return (encoder, steps[0]), (decoder, steps[1])


def _read_layers(values):
  encoder, decoder = _sizes(values)
  for every in (encoder[1], decoder[1]):
    if every and all(_sparse(layers, step) == _sparse(layers, every) for layers, step in (encoder, decoder)):
      place = 2 if every > 2 else 0
      return {'encoder.num_layers': encoder[0], 'num_layers': decoder[0], 'moe.every': every, 'moe.place': place}
  raise FieldError(
    f'num_sparse_encoder_layers and num_sparse_decoder_layers put experts into every {encoder[1]}th layer of the '
    f'encoder and every {decoder[1]}th of the decoder (0 = none), which cannot be honoured; allowed is the same in both'
  )


def _write_layers(model):
  layers = {'encoder': model['encoder.num_layers'], 'decoder': model['num_layers']}
  every, written = model['moe.every'], {'num_layers': layers['encoder'], 'num_decoder_layers': layers['decoder']}
  for stack, number in layers.items():
    written[f'num_sparse_{stack}_layers'] = max(len(_sparse(number, every)), 1)
    written[f'{stack}_sparse_step'] = every
  return written


def _write_capacity(model):
  if not model['moe.expert_capacity']:
    raise FieldError('model.moe.expert_capacity=0 cannot be written as expert_capacity, which is a number of tokens')
  return {'expert_capacity': model['moe.expert_capacity']}


def _expert_rules(stack, mlp):
  theirs, ours = f'{stack}.block.{{layer}}.layer.{mlp}.mlp', f'{stack}/{{layer}}/mlp'
  return (
    *dense(f'{theirs}.router.classifier', f'{ours}/router'),
    *dense(f'{theirs}.experts.expert_{{expert}}.wi', f'{ours}/experts/up'),
    *dense(f'{theirs}.experts.expert_{{expert}}.wo', f'{ours}/experts/down'),
  )


FAMILY = Family(
  name='switch_transformers',
  architectures=('SwitchTransformersForConditionalGeneration', 'SwitchTransformersModel'),
  fields=Fields(
    (
      *t5.FIELDS,
      key('d_model', 'embed_dim', 768),
      key('num_heads', 'num_heads', 12),
      key('dense_act_fn', 'activation', 'relu', ACTIVATIONS),
      key('num_experts', 'moe.num_experts', 8),
      Field(
        ('expert_capacity',), lambda values: {'moe.expert_capacity': values.get('expert_capacity', 64)}, _write_capacity
      ),
      key('router_bias', 'moe.router_bias', False),
      key('router_jitter_noise', 'moe.jitter', 0.01),
      key('router_z_loss_coef', 'moe.z_loss', 0.001),
      key('router_aux_loss_coef', 'moe.balance_loss', 0.001),
      Field(
        ('num_layers', 'num_decoder_layers')
        + ('num_sparse_encoder_layers', 'num_sparse_decoder_layers', 'encoder_sparse_step', 'decoder_sparse_step'),
        _read_layers,
        _write_layers,
      ),
      Field(
        ('d_model',),
        lambda values: {'logit_scale': values.get('d_model', 768) ** -0.5},
        lambda model: {'d_model': model['embed_dim']},
      ),
      must('tie_word_embeddings', True),
      must('router_dtype', 'float32'),
      must('router_type', 'tokens_masked'),
      must('batch_prioritized_routing', False),
      must('is_gated_act', False),
      must('feed_forward_proj', 'relu'),
      # Padding passes no expert here; there it does, which shows only where it takes the place of text in a full one.
      free('router_ignore_padding_tokens', 'add_router_probs', 'output_router_logits'),
    ),
    t5.MODEL | {'gated_mlp': False, 'moe.experts_per_token': 1, 'moe.router': 'softmax'},
  ),
  rules=(
    *table('shared', 'embedding'),
    *t5.stack_rules('encoder', 'mlp', 1),
    *t5.stack_rules('decoder', 'mlp', 2),
    *_expert_rules('encoder', 1),
    *_expert_rules('decoder', 2),
  ),
  objective='span_corruption',
  duplicates=t5.DUPLICATES,
  buffers=t5.BUFFERS,
)
