"""Writes the encoder-decoders of families/*.npz, and generation/*.npz: what transformers' `generate` writes.

Run with an interpreter that has torch and transformers: `python tests/golden/make_seq2seq.py [NAME ...]`. Weights,
paddings and gradients are as in make_families.py; sources and targets differ in length, encoders and decoders in depth.
"""

import json
import sys

import make_families
import numpy as np
import torch
import transformers

SOURCE, TARGET = 13, 11  # tokens a row
SOURCE_PADDING = ((0, 0), (3, 0), (0, 4))  # tokens on the left and on the right, by row
TARGET_PADDING = ((0, 3), (0, 0), (2, 1))
OURS = {'vocab_size': 40, 'eos_token_id': 3, 'pad_token_id': 1, 'decoder_start_token_id': 2}
T5 = OURS | {
  'd_model': 16,
  'd_kv': 6,
  'd_ff': 20,
  'num_layers': 1,
  'num_decoder_layers': 2,
  'num_heads': 3,
  'relative_attention_num_buckets': 8,
  'relative_attention_max_distance': 9,
  'dropout_rate': 0.0,
}
SWITCH = T5 | {
  'num_layers': 2,
  'num_decoder_layers': 3,
  'num_sparse_encoder_layers': 1,
  'num_sparse_decoder_layers': 1,
  'num_experts': 3,
}
BART = OURS | {
  'd_model': 16,
  'encoder_layers': 2,
  'decoder_layers': 1,
  'encoder_attention_heads': 2,
  'decoder_attention_heads': 4,
  'encoder_ffn_dim': 20,
  'decoder_ffn_dim': 12,
  'max_position_embeddings': 16,
  'dropout': 0.0,
}
# Name of the golden file: class of the model, its config, and whether the head is a table of its own after all.
MODELS = {
  't5': ('T5ForConditionalGeneration', T5, False),
  't5_v11': (
    'T5ForConditionalGeneration',
    T5 | {'num_layers': 3, 'feed_forward_proj': 'gated-gelu', 'tie_word_embeddings': False, 'layer_norm_epsilon': 0.1},
    True,
  ),
  'bart': ('BartForConditionalGeneration', BART, False),
  'bart_scaled': (
    'BartForConditionalGeneration',
    BART | {'scale_embedding': True, 'activation_function': 'relu', 'decoder_layers': 3},
    False,
  ),
  'switch': ('SwitchTransformersForConditionalGeneration', SWITCH | {'router_bias': True}, False),
  # Padding takes places of an expert in transformers, so here it stands behind the text.
  'switch_full': (
    'SwitchTransformersForConditionalGeneration',
    SWITCH | {'expert_capacity': 3, 'num_layers': 4, 'num_decoder_layers': 6},
    False,
  ),
}


def create(architecture, options, untied=False):
  """A model with large random parameters, representable in bfloat16."""
  torch.manual_seed(sum(map(ord, architecture)) + len(options))
  model_class = getattr(transformers, architecture)
  config = model_class.config_class(**options)
  model = model_class._from_config(config, attn_implementation='eager').float().eval()
  if untied:
    model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(model.lm_head.weight))
  tensors = list(model.parameters())
  if hasattr(model, 'final_logits_bias'):
    model.final_logits_bias.requires_grad_(True)
    tensors.append(model.final_logits_bias)
  for tensor in tensors:
    torch.nn.init.normal_(tensor, mean=float(tensor.dim() == 1), std=0.4 if tensor.dim() == 1 else 0.3)
    tensor.data = tensor.data.bfloat16().float()
  return model


def masked(padding, length):
  """1 where there is text."""
  mask = np.ones((len(padding), length), np.int64)
  for row, (left, right) in zip(mask, padding):
    row[:left], row[length - right :] = 0, 0
  return mask


def make(name):
  """Writes one golden file."""
  architecture, options, untied = MODELS[name]
  model = create(architecture, options, untied)
  turned = 'expert_capacity' in options
  ends = lambda padding: tuple((0, left + right) for left, right in padding) if turned else padding
  source_mask, mask = masked(ends(SOURCE_PADDING), SOURCE), masked(ends(TARGET_PADDING), TARGET)
  rng = np.random.default_rng(0)
  source, text = (rng.integers(4, options['vocab_size'], size=each.shape) for each in (source_mask, mask))
  target = np.where(mask * np.cumsum(mask, axis=1) == 1, options['decoder_start_token_id'], np.roll(text, 1, axis=1))
  inputs = {'input_ids': source, 'attention_mask': source_mask}
  inputs |= {'decoder_input_ids': target, 'decoder_attention_mask': mask}
  outputs = model(**{key: torch.from_numpy(value) for key, value in inputs.items()}, use_cache=False)
  logits, encoded = outputs.logits, outputs.encoder_last_hidden_state
  labels = torch.from_numpy(np.where(mask, text, -100))
  loss = torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1))
  loss.backward()
  golden = {'source': source, 'source_mask': source_mask, 'tokens': target, 'mask': mask, 'labels': labels.numpy()}
  golden |= {'loss': loss.item(), 'encoded': encoded.detach().numpy() * source_mask[:, :, None]}
  golden['logits'] = logits.detach().numpy() * mask[:, :, None]
  gradients = {key: parameter.grad for key, parameter in model.named_parameters(remove_duplicate=False)}
  if hasattr(model, 'final_logits_bias'):
    gradients['final_logits_bias'] = model.final_logits_bias.grad
  # An expert that no token chose has none.
  weights, described = make_families.saved(model, None)
  gradients |= {key: torch.zeros(weights[key].shape) for key, value in gradients.items() if value is None}
  golden['config'] = json.dumps(described)
  golden |= {f'weights/{key}': value for key, value in weights.items()}
  golden |= {f'gradients/{key}': make_families.rounded(gradients[key].numpy()) for key in weights}
  path = make_families.FOLDER / f'{name}.npz'
  np.savez_compressed(path, **golden)
  print(f'{name}: {path.stat().st_size / 1e3:.0f} kB, loss {loss.item():.2f}, logits up to {logits.abs().max():.1f}')


# What generates: class and config, with few tokens, so that texts end.
FEW = {'vocab_size': 14}
GENERATORS = {
  'gpt2': ('GPT2LMHeadModel', make_families.GPT2 | FEW | {'n_positions': 32}),
  'llama': ('LlamaForCausalLM', make_families.LLAMA | FEW | {'max_position_embeddings': 32}),
  't5': ('T5ForConditionalGeneration', T5 | FEW | {'num_layers': 3}),
  'bart': (
    'BartForConditionalGeneration',
    BART | FEW | {'max_position_embeddings': 14, 'forced_bos_token_id': 5, 'forced_eos_token_id': 3},
  ),
}
NEW_TOKENS = 11
BEAMS = (  # num_beams, length_penalty, early_stopping: 0 = False, 1 = True, 2 = 'never'
  *((1, 1.0, 0), (4, 1.0, 0), (4, 2.0, 2), (4, -0.5, 0), (4, 2.0, 1)),
)


def generate(name):
  """Writes what a model generates, greedily and with beams, after prompts of unlike lengths."""
  architecture, options = GENERATORS[name]
  model = create(architecture, options)
  model.get_output_embeddings().weight.data[options['eos_token_id']] *= 4  # so that it wins now and then
  rng = np.random.default_rng(1)
  prompts = [rng.integers(4, options['vocab_size'], size=size).tolist() for size in (5, 9, 2, 7, 11, 4, 3, 8)]
  golden = {f'prompts/{i}': np.array(prompt) for i, prompt in enumerate(prompts)} | {'new_tokens': NEW_TOKENS}
  lengths = []
  for case, (num_beams, length_penalty, early) in enumerate(BEAMS):
    beams = {'length_penalty': length_penalty, 'early_stopping': (False, True, 'never')[early]} if num_beams > 1 else {}
    texts = np.full((len(prompts), NEW_TOKENS), -1)
    for row, prompt in zip(texts, prompts):
      given = torch.tensor([prompt])
      written = model.generate(
        given, attention_mask=torch.ones_like(given), max_new_tokens=NEW_TOKENS, do_sample=False, num_beams=num_beams,
        pad_token_id=1, **beams,
      )[0, 1 if model.config.is_encoder_decoder else len(prompt) :]  # fmt: skip
      row[: len(written)] = written
      lengths.append(len(written))
    golden[f'texts/{case}'], golden[f'options/{case}'] = texts, np.array(BEAMS[case])
  weights, described = make_families.saved(model, None)
  golden |= {f'weights/{key}': value for key, value in weights.items()} | {'config': json.dumps(described)}
  folder = make_families.FOLDER.with_name('generation')
  folder.mkdir(exist_ok=True)
  np.savez_compressed(folder / f'{name}.npz', **golden)
  print(f'{name}: texts of {sorted(lengths)} tokens, {(folder / f"{name}.npz").stat().st_size / 1e3:.0f} kB')


def main():
  for name in sys.argv[1:] or [*MODELS, *(f'generation/{name}' for name in GENERATORS)]:
    if name.startswith('generation/'):
      generate(name.removeprefix('generation/'))
    else:
      make(name)


if __name__ == '__main__':
  main()
