"""Writes beam_search.npz: beam search of Hugging Face transformers over random Markov chains.

Run with an interpreter that has torch and transformers: `python tests/golden/make_beam_search.py`.
"""

import pathlib

import numpy as np
import torch
import transformers

CHAINS, VOCAB, EOS, NEW_TOKENS = 12, 11, 0, 9
PROMPT = [3, 7, 3]
CASES = {  # name: (num_beams, length_penalty, repetition_penalty)
  'two_beams': (2, 1.0, 1.0),
  'four_beams_long': (4, 2.0, 1.0),
  'three_beams_short': (3, 0.0, 1.0),
  'three_beams_shorter': (3, -1.0, 1.0),
  'three_beams_penalty': (3, 1.0, 1.5),
}


class MarkovChain(transformers.PreTrainedModel, transformers.GenerationMixin):
  """Next-token logits that depend on the last token alone."""

  config_class = transformers.PretrainedConfig
  main_input_name = 'input_ids'

  def __init__(self, table):
    super().__init__(
      transformers.PretrainedConfig(
        vocab_size=VOCAB,
        bos_token_id=1,
        eos_token_id=EOS,
        pad_token_id=EOS,
        is_encoder_decoder=False,
        num_hidden_layers=1,
        num_attention_heads=1,
        hidden_size=1,
      )
    )
    self.table = torch.nn.Parameter(torch.from_numpy(table))

  def forward(self, input_ids, attention_mask=None, **kwargs):
    return transformers.modeling_outputs.CausalLMOutput(logits=self.table[input_ids])

  def prepare_inputs_for_generation(self, input_ids, **kwargs):
    return {'input_ids': input_ids}


def main():
  rng = np.random.default_rng(0)
  tables = (1.5 * rng.standard_normal((CHAINS, VOCAB, VOCAB))).astype(np.float32)
  golden = {
    'tables': tables,
    'prompt': np.array(PROMPT),
    'new_tokens': NEW_TOKENS,
    'transformers': transformers.__version__,
  }
  for name, (num_beams, length_penalty, repetition_penalty) in CASES.items():
    texts = np.full((CHAINS, NEW_TOKENS), -1)
    for chain, table in enumerate(tables):
      tokens = (
        MarkovChain(table)
        .generate(
          torch.tensor([PROMPT]),
          attention_mask=torch.ones(1, len(PROMPT), dtype=torch.long),
          num_beams=num_beams,
          do_sample=False,
          length_penalty=length_penalty,
          repetition_penalty=repetition_penalty,
          max_new_tokens=NEW_TOKENS,
          early_stopping='never',
          use_cache=False,
        )[0, len(PROMPT) :]
        .tolist()
      )
      texts[chain, : len(tokens)] = tokens
    golden[name] = texts
    golden[f'{name}_options'] = np.array([num_beams, length_penalty, repetition_penalty])
  np.savez_compressed(pathlib.Path(__file__).with_name('beam_search.npz'), **golden)


if __name__ == '__main__':
  main()
