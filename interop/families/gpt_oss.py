"""gpt-oss (OpenAI 2025): experts with biases, attention sinks, every other layer with a window, YaRN from the start."""

from interop import windows
from interop.families import llama, mixtral
from interop.family import Family
from interop.fields import LENGTH, Field, FieldError, Fields, free, key, must, refused
from interop.rotary import rotary
from interop.rules import Rule, dense

_ROPE = rotary(default_theta=150000.0)
_USUAL_ROPE = {'rope_type': 'yarn', 'factor': 32.0, 'truncate': False, 'original_max_position_embeddings': 4096}


def _read_rope(values):
  given = values.get('rope_parameters') or values.get('rope_scaling')
  return _ROPE.read(values if given else values | {'rope_parameters': _USUAL_ROPE})


def _write_rope(model):
  if model['rope.scaling'] != 'none':
    return _ROPE.write(model)
  share = {} if model['rope.fraction'] == 1 else {'partial_rotary_factor': model['rope.fraction']}
  return {'rope_parameters': {'rope_type': 'default', 'rope_theta': model['rope.theta']} | share}


def _read_quantization(values):
  if given := values.get('quantization_config'):
    method = given.get('quant_method') if isinstance(given, dict) else given
    raise FieldError(
      f'quantization_config has quant_method={method!r}, and quantised weights are not read; write them in bfloat16 '
      'with transformers: GptOssForCausalLM.from_pretrained(DIRECTORY, dtype="bfloat16", '
      'quantization_config=Mxfp4Config(dequantize=True)).save_pretrained(NEW_DIRECTORY)'
    )
  return {}


def _read_repeated(values):
  names = ('experts_per_token', 'num_experts_per_tok')
  given, wanted = values.get(names[0]), values.get(names[1], 4)
  if given not in (None, wanted):
    raise refused(names[0], given, f'the value of {names[1]}, {wanted}')
  return {}


def _usual_layers(values, num_layers):
  return ['full_attention' if i % 2 else 'sliding_attention' for i in range(num_layers)]


def _read_biases(values):
  return {'attention.bias': 'model' if values.get('attention_bias', True) else 'none'}


def _write_biases(model):
  return {'attention_bias': model['attention.bias'] in ('model', 'all')}


_EXPERTS, _OURS = 'model.layers.{layer}.mlp.experts.', '{layer}/mlp/experts/'
FAMILY = Family(
  name='gpt_oss',
  architectures=('GptOssForCausalLM', 'GptOssModel'),
  fields=Fields(
    (
      key('vocab_size', 'vocab_size', 201088),
      *(field for field in llama.SIZES if field.names != ('hidden_act',)),
      key('hidden_size', 'embed_dim', 2880),
      key('num_hidden_layers', 'num_layers', 36),
      key('num_attention_heads', 'num_heads', 64),
      key('head_dim', 'head_dim', 64),
      key('rms_norm_eps', 'norm_epsilon', 1e-5),
      Field(
        ('intermediate_size',),
        lambda values: dict.fromkeys(('mlp_dim', 'moe.mlp_dim'), values.get('intermediate_size', 2880)),
        lambda model: {'intermediate_size': model['moe.mlp_dim']},
      ),
      key('num_key_value_heads', 'num_kv_heads', 8),
      key('max_position_embeddings', LENGTH, 131072),
      key('num_local_experts', 'moe.num_experts', 128),
      key('num_experts_per_tok', 'moe.experts_per_token', 4),
      Field(('experts_per_token', 'num_experts_per_tok'), _read_repeated, lambda model: {}),
      windows.by_layer(_usual_layers, (), 128),
      Field(('attention_bias',), _read_biases, _write_biases),
      Field(_ROPE.names, _read_rope, _write_rope),
      Field(('quantization_config',), _read_quantization, lambda model: {}),
      must('hidden_act', 'silu'),  # and not read: the experts have an activation of their own
      must('swiglu_alpha', 1.702),
      must('swiglu_limit', 7.0),
      free('initial_context_length'),
      mixtral.TRAINING,
    ),
    llama.MODEL
    | {'activation': 'swiglu_oss', 'use_bias': True, 'attention.sinks': True}
    | {'moe.router': 'softmax', 'moe.normalize': True, 'moe.router_bias': True},
    aliases={'num_experts': 'num_local_experts'},
  ),
  rules=(
    *llama.RULES,
    Rule('model.layers.{layer}.self_attn.sinks', ('{layer}/attention/sinks',)),
    *dense('model.layers.{layer}.mlp.router', '{layer}/mlp/router'),
    Rule(f'{_EXPERTS}gate_up_proj', (f'{_OURS}gate/kernel', f'{_OURS}up/kernel'), inputs=1, interleaved=True, batch=1),
    Rule(f'{_EXPERTS}gate_up_proj_bias', (f'{_OURS}gate/bias', f'{_OURS}up/bias'), interleaved=True, batch=1),
    Rule(f'{_EXPERTS}down_proj', (f'{_OURS}down/kernel',), inputs=1, batch=1),
    Rule(f'{_EXPERTS}down_proj_bias', (f'{_OURS}down/bias',), batch=1),
  ),
  prefix=llama.PREFIX,
  duplicates=llama.DUPLICATES,
  buffers=llama.BUFFERS,
)
