"""Writes transformers.npz: small random models of Hugging Face transformers, their logits and gradients.

Run with an interpreter that has torch and transformers: `python tests/golden/make_transformers.py`.
"""

import pathlib

import numpy as np
import torch
import transformers

VOCAB, ROWS, LENGTH = 48, 2, 24


def models():
  """GPT-2 and Llama, narrow; norms and biases random too, since at their initial 1 and 0 they would prove nothing."""
  torch.manual_seed(0)
  gpt2 = transformers.GPT2Config(
    vocab_size=VOCAB,
    n_positions=LENGTH,
    n_embd=16,
    n_layer=2,
    n_head=4,
    n_inner=32,
    bos_token_id=None,
    eos_token_id=None,
    resid_pdrop=0.0,
    embd_pdrop=0.0,
    attn_pdrop=0.0,
  )
  llama = transformers.LlamaConfig(
    vocab_size=VOCAB,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=LENGTH,
    rope_theta=500000.0,
    rms_norm_eps=1e-5,
    tie_word_embeddings=False,
  )
  made = {'gpt2': transformers.GPT2LMHeadModel(gpt2), 'llama': transformers.LlamaForCausalLM(llama)}
  for model in made.values():
    for parameter in model.parameters():
      torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.2)
  return made


def main():
  tokens = np.random.default_rng(0).integers(VOCAB, size=(ROWS, LENGTH))
  golden = {'tokens': tokens.astype(np.int32), 'transformers': transformers.__version__}
  for name, model in models().items():
    inputs = torch.from_numpy(tokens)
    output = model(inputs, labels=inputs)
    output.loss.backward()
    golden[f'{name}/logits'] = output.logits.detach().numpy()
    golden[f'{name}/loss'] = output.loss.item()
    for key, parameter in model.named_parameters():
      golden[f'{name}/weights/{key}'] = parameter.detach().numpy()
      golden[f'{name}/gradients/{key}'] = parameter.grad.numpy()
  np.savez_compressed(pathlib.Path(__file__).with_name('transformers.npz'), **golden)


if __name__ == '__main__':
  main()
