"""Writes families/*.npz: tiny random models of Hugging Face transformers, their logits and gradients in float32.

Run with an interpreter that has torch and transformers: `python tests/golden/make_families.py [NAME ...]`.

Every parameter is random and large, norms and biases too: at their initial values masks, positions and scales would
hardly show. Weights are representable in bfloat16 and gradients rounded to 17 bits, so that the files stay small. Rows
are padded on the left, on the right, and not at all.
"""

import json
import pathlib
import sys
import tempfile

import numpy as np
import safetensors.torch
import torch
import transformers

FOLDER = pathlib.Path(__file__).with_name('families')
LENGTH = 13
PADDING = ((0, 0), (3, 0), (0, 4))  # tokens on the left and on the right, by row
OURS = {'vocab_size': 40, 'bos_token_id': None, 'eos_token_id': 3, 'pad_token_id': None}
LLAMA = OURS | {
  'hidden_size': 16,
  'intermediate_size': 20,
  'num_hidden_layers': 3,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
  'max_position_embeddings': 8,
}
GPT2 = OURS | {'n_positions': 16, 'n_embd': 16, 'n_layer': 2, 'n_head': 4}
NEOX = OURS | {
  'hidden_size': 16,
  'intermediate_size': 20,
  'num_hidden_layers': 2,
  'num_attention_heads': 2,
  'max_position_embeddings': 16,
  'rope_parameters': {'rope_type': 'default', 'rope_theta': 100.0, 'partial_rotary_factor': 0.5},
}
GEMMA_ROPE = {
  'full_attention': {'rope_type': 'linear', 'rope_theta': 500.0, 'factor': 4.0},
  'sliding_attention': {'rope_type': 'default', 'rope_theta': 50.0},
}
EXPERTS = LLAMA | {'num_hidden_layers': 2, 'intermediate_size': 12, 'num_experts_per_tok': 2}
DEEPSEEK = EXPERTS | {
  'num_key_value_heads': 4,
  'qk_nope_head_dim': 6,
  'qk_rope_head_dim': 4,
  'v_head_dim': 7,
  'kv_lora_rank': 5,
  'q_lora_rank': 9,
  'n_routed_experts': 6,
  'moe_intermediate_size': 10,
  'first_k_dense_replace': 1,
  'n_group': 3,
  'topk_group': 2,
  'rms_norm_eps': 0.1,
}
BERT = {
  'hidden_size': 16,
  'intermediate_size': 20,
  'num_hidden_layers': 2,
  'num_attention_heads': 4,
  'max_position_embeddings': 16,
}
MODERNBERT = {
  'hidden_size': 16,
  'intermediate_size': 20,
  'num_hidden_layers': 4,
  'num_attention_heads': 2,
  'local_attention': 5,
  'rope_parameters': {
    'full_attention': {'rope_type': 'default', 'rope_theta': 500.0},
    'sliding_attention': {'rope_type': 'default', 'rope_theta': 50.0},
  },
  **dict.fromkeys(('cls_token_id', 'sep_token_id'), 1),
}
XLNET = {'d_model': 16, 'd_inner': 20, 'n_layer': 2, 'n_head': 2}
NO_DROPOUT = {'resid_pdrop': 0.0, 'embd_pdrop': 0.0, 'attn_pdrop': 0.0}


def rope(kind, **entries):
  return {'rope_parameters': {'rope_type': kind, 'rope_theta': 100.0, 'factor': 4.0, **entries}}


# Name of the golden file: class of the model, and its config.
MODELS = {
  'gpt2': ('GPT2LMHeadModel', GPT2 | NO_DROPOUT | {'n_inner': 24}),
  'gpt2_untied': (
    'GPT2LMHeadModel',
    GPT2 | NO_DROPOUT | {'tie_word_embeddings': False, 'activation_function': 'relu', 'layer_norm_epsilon': 0.1},
  ),
  'llama': ('LlamaForCausalLM', LLAMA | {'rope_parameters': {'rope_type': 'default', 'rope_theta': 500.0}}),
  'llama_tied': (
    'LlamaForCausalLM',
    LLAMA
    | {'attention_bias': True, 'tie_word_embeddings': True, 'num_key_value_heads': 4, 'head_dim': 6}
    | {'rms_norm_eps': 0.1},
  ),
  'llama_biases': ('LlamaForCausalLM', LLAMA | {'attention_bias': True, 'mlp_bias': True, 'num_key_value_heads': 1}),
  'llama_linear': ('LlamaForCausalLM', LLAMA | rope('linear')),
  'llama_dynamic': ('LlamaForCausalLM', LLAMA | rope('dynamic')),
  'llama_yarn': (
    'LlamaForCausalLM',
    LLAMA | rope('yarn', original_max_position_embeddings=6, beta_fast=4.0) | {'head_dim': 8},
  ),
  'llama_llama3': (
    'LlamaForCausalLM',
    LLAMA
    | rope('llama3', original_max_position_embeddings=24, low_freq_factor=1.0, high_freq_factor=4.0)
    | {'head_dim': 8},
  ),
  'mistral': ('MistralForCausalLM', LLAMA | {'sliding_window': 4}),
  'qwen3': (
    'Qwen3ForCausalLM',
    LLAMA
    | {'head_dim': 6, 'use_sliding_window': True, 'sliding_window': 3, 'max_window_layers': 1, 'attention_bias': True},
  ),
  'gpt_neox': ('GPTNeoXForCausalLM', NEOX),
  'gpt_neox_sequential': (
    'GPTNeoXForCausalLM',
    NEOX | {'use_parallel_residual': False, 'attention_bias': False, 'tie_word_embeddings': True},
  ),
  'bloom': ('BloomForCausalLM', OURS | {'hidden_size': 18, 'n_layer': 2, 'n_head': 6}),
  'mpt': (
    'MptForCausalLM',
    OURS | {'d_model': 18, 'n_layers': 2, 'n_heads': 6, 'max_seq_len': 16, 'attn_config': {'softmax_scale': 0.7}},
  ),
  'gemma3': (
    'Gemma3ForCausalLM',
    LLAMA
    | {'head_dim': 8, 'sliding_window': 3, 'query_pre_attn_scalar': 5, 'final_logit_softcapping': 4.0}
    | {'layer_types': ['sliding_attention', 'full_attention', 'sliding_attention']}
    | {'rope_parameters': GEMMA_ROPE, 'tie_word_embeddings': True},
  ),
  'mixtral': ('MixtralForCausalLM', EXPERTS | {'num_local_experts': 5, 'sliding_window': 4}),
  'qwen3_moe': (
    'Qwen3MoeForCausalLM',
    EXPERTS
    | {'num_experts': 5, 'moe_intermediate_size': 7, 'mlp_only_layers': [0], 'head_dim': 6}
    | {'attention_bias': True},
  ),
  'qwen3_moe_window': (
    'Qwen3MoeForCausalLM',
    EXPERTS
    | {'num_experts': 4, 'moe_intermediate_size': 6, 'decoder_sparse_step': 2, 'norm_topk_prob': True}
    | {'use_sliding_window': True, 'sliding_window': 3, 'num_experts_per_tok': 3},
  ),
  'gpt_oss': (
    'GptOssForCausalLM',
    EXPERTS
    | rope('yarn', original_max_position_embeddings=6, beta_fast=4.0, truncate=False)
    | {'num_local_experts': 5, 'head_dim': 8, 'sliding_window': 3},
  ),
  'deepseek': ('DeepseekV3ForCausalLM', DEEPSEEK),
  'deepseek_yarn': (
    'DeepseekV3ForCausalLM',
    DEEPSEEK
    | rope('yarn', original_max_position_embeddings=6, beta_fast=4.0, mscale=0.7, mscale_all_dim=1.5)
    | {'q_lora_rank': None, 'rope_interleave': False, 'attention_bias': True, 'n_shared_experts': 2, 'v_head_dim': 12}
    | {'first_k_dense_replace': 0, 'qk_rope_head_dim': 8, 'qk_nope_head_dim': 3, 'n_group': 1, 'topk_group': 1}
    | {'norm_topk_prob': False, 'routed_scaling_factor': 1.7, 'n_routed_experts': 4},
  ),
  'bert': ('BertForPreTraining', OURS | BERT),
  'bert_untied': (
    'BertForMaskedLM',
    OURS | BERT | {'tie_word_embeddings': False, 'type_vocab_size': 3, 'hidden_act': 'relu', 'layer_norm_eps': 0.1},
  ),
  'roberta': ('RobertaForMaskedLM', OURS | BERT | {'type_vocab_size': 1, 'pad_token_id': 1, 'layer_norm_eps': 1e-5}),
  'modernbert': ('ModernBertForMaskedLM', OURS | MODERNBERT),
  'modernbert_biases': (
    'ModernBertForMaskedLM',
    OURS
    | MODERNBERT
    | dict.fromkeys(('mlp_bias', 'norm_bias', 'attention_bias', 'classifier_bias'), True)
    | {'decoder_bias': True, 'tie_word_embeddings': False, 'num_hidden_layers': 2, 'norm_eps': 0.1}
    | {'layer_types': ['sliding_attention', 'full_attention']},
  ),
  'xlnet': ('XLNetLMHeadModel', OURS | XLNET),
  'xlnet_untied': ('XLNetLMHeadModel', OURS | XLNET | {'tie_word_embeddings': False, 'layer_norm_eps': 0.1}),
}
TYPES = {'bert': 2, 'bert_untied': 3, 'xlnet': 2}  # token types that are told apart, by golden file
TWO_STREAMS = ('xlnet_untied',)
ENCODERS = ('Bert', 'Roberta', 'ModernBert', 'XLNet')
# Their code derives places from the mask, or from the tokens of padding.
POSITIONLESS = ('BloomForCausalLM', 'MptForCausalLM', 'RobertaForMaskedLM', 'XLNetLMHeadModel')


def make(name):
  """Writes one golden file."""
  architecture, options = MODELS[name]
  torch.manual_seed(sum(map(ord, name)))
  model_class = getattr(transformers, architecture)
  config = model_class.config_class(**options)
  model = model_class._from_config(config, attn_implementation='eager', experts_implementation='eager').float().eval()
  for key, parameter in model.named_parameters():
    std = 2.0 if name == 'gpt_oss' and 'gate_up_proj' in key else 0.3  # beyond the limits of its activation
    torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.4 if parameter.dim() == 1 else std)
    parameter.data = parameter.data.bfloat16().float()
  buffers = {key: value for key, value in model.named_buffers() if key in model.state_dict()}
  for buffer in buffers.values():  # DeepSeek's biases of selection
    buffer.copy_(0.1 * torch.randn(buffer.shape).bfloat16().float())
  mask = np.ones((len(PADDING), LENGTH), np.int64)
  for row, (left, right) in zip(mask, PADDING):
    row[:left], row[LENGTH - right :] = 0, 0
  rng = np.random.default_rng(0)
  tokens = rng.integers(options['vocab_size'], size=mask.shape)
  if options['pad_token_id'] is not None:
    tokens = np.where(mask, np.where(tokens == options['pad_token_id'], 2, tokens), options['pad_token_id'])
  inputs = {'input_ids': torch.from_numpy(tokens), 'attention_mask': torch.from_numpy(mask)}
  # Dynamic scaling goes by the longest row of a batch: here all reach the same position.
  dynamic = options.get('rope_parameters', {}).get('rope_type') == 'dynamic'
  positions = np.cumsum(np.ones_like(mask) if dynamic else mask, axis=1) - 1
  positions = np.maximum(positions, 0)
  if architecture not in POSITIONLESS:
    inputs['position_ids'] = torch.from_numpy(positions)
  golden = {'tokens': tokens, 'mask': mask, 'positions': positions}
  if name in TYPES:
    golden['token_types'] = rng.integers(TYPES[name], size=mask.shape)
    inputs['token_type_ids'] = torch.from_numpy(golden['token_types'])
  labels = np.where(np.pad(mask[:, 1:] * mask[:, :-1], ((0, 0), (0, 1))), np.roll(tokens, -1, axis=1), -100)
  if name in TWO_STREAMS:
    golden['order'], golden['targets'] = factorisation(mask, rng)
    inputs |= two_streams(golden['order'], golden['targets'])
    labels = np.take_along_axis(tokens, np.maximum(golden['targets'], 0), axis=1)
    labels = np.where(golden['targets'] < 0, -100, labels)
  if architecture.startswith(ENCODERS):
    hidden = model.base_model(**inputs)[0].detach().numpy()
    golden['hidden'] = hidden * (labels >= 0 if name in TWO_STREAMS else mask)[:, :, None]
  else:
    inputs['use_cache'] = False
  outputs = model(**inputs)
  logits = outputs.prediction_logits if architecture == 'BertForPreTraining' else outputs.logits
  loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(labels).flatten())
  loss.backward()
  golden['loss'] = loss.item()
  golden['logits'] = logits.detach().numpy() * (labels >= 0 if name in TWO_STREAMS else mask)[:, :, None]
  gradients = {
    key: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    for key, parameter in model.named_parameters(remove_duplicate=False)
  }
  gradients |= {key: torch.zeros_like(buffer) for key, buffer in buffers.items()}
  weights, described = saved(model, None)
  golden['config'] = json.dumps(described)
  golden |= {f'weights/{key}': value for key, value in weights.items()}
  golden |= {f'gradients/{key}': rounded(value) for key, value in saved(model, gradients)[0].items()}
  np.savez_compressed(FOLDER / f'{name}.npz', **golden)
  size = (FOLDER / f'{name}.npz').stat().st_size
  print(f'{name}: {size / 1e3:.0f} kB, loss {loss.item():.2f}, logits up to {logits.abs().max().item():.1f}')


def factorisation(mask, rng):
  """An order of the tokens of each row, 0 where they are context, and the places of the others; -1 = none."""
  order, targets = np.zeros_like(mask), np.full((len(mask), 5), -1)
  for row, of_row, number in zip(mask, zip(order, targets), (5, 3, 4)):
    chosen = rng.permutation(np.flatnonzero(row))[:number]
    of_row[0][chosen], of_row[1][:number] = 1 + np.arange(number), rng.permutation(chosen)
  return order, targets


def two_streams(order, targets):
  """XLNet's `perm_mask`, 1 where a token does not see another, and `target_mapping`."""
  own, other = order[:, :, None], order[:, None, :]
  perm_mask = (other > own) | ((other == own) & (own > 0))
  target_mapping = targets[:, :, None] == np.arange(order.shape[1])
  return {'perm_mask': torch.from_numpy(perm_mask).float(), 'target_mapping': torch.from_numpy(target_mapping).float()}


def saved(model, state):
  """What `save_pretrained` writes: tensors and config.json."""
  with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder, state_dict=state)
    tensors = safetensors.torch.load_file(f'{folder}/model.safetensors')
    config = json.loads(pathlib.Path(folder, 'config.json').read_text())
  return {key: value.numpy() for key, value in tensors.items()}, config


def rounded(array):
  """The array with 16 fraction bits, whose last byte is always 0."""
  bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
  return ((bits + 0x40) & np.uint32(0xFFFFFF80)).view(np.float32)


def main():
  FOLDER.mkdir(exist_ok=True)
  for name in sys.argv[1:] or MODELS:
    make(name)


if __name__ == '__main__':
  main()
