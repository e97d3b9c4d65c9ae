"""Generation with the 124M shape of GPT-2 and random weights, on request.

  python -m benchmarks.generation_worker bfloat16

Lines `{"rows": b, "prompt_tokens": p, "new_tokens": n}` in, lines `{"seconds": s}` out.
"""

import json
import sys
import time
import types

import inference
import model as model_lib
import precision
from training import configs

VOCAB = 50257


class Numbers:
  """A tokenizer whose texts are ids separated by spaces."""

  vocab_size, eos_id = VOCAB, VOCAB - 1

  def encode(self, text):
    return [int(word) for word in text.split()]

  def decode(self, ids):
    return ' '.join(map(str, ids))


def main():
  config = configs.load(
    'configs/gpt2.py', ['--config.model.max_length=1024', f'--config.precision.dtype={sys.argv[1]}']
  )
  model, params = model_lib.build(config.model)
  decoder = precision.Decoder(model, precision.policy(config.precision))
  run = types.SimpleNamespace(
    decoder=decoder, decoding_params=decoder.unstacked(params, model_lib.Stream.of_one_token()), tokenizer=Numbers()
  )
  del params
  print(json.dumps({'parameters': model.num_params}), flush=True)
  for line in sys.stdin:
    request = json.loads(line)
    # A mark that begins the document comes before the words.
    words = request['prompt_tokens'] - 1
    prompts = [' '.join(str(1 + row + i) for i in range(words)) for row in range(request['rows'])]
    start = time.perf_counter()
    inference.generate(run, prompts, max_new_tokens=request['new_tokens'], temperature=0, stop_at_eos=False)
    print(json.dumps({'seconds': time.perf_counter() - start}), flush=True)


if __name__ == '__main__':
  main()
