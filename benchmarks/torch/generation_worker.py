"""Generation by Hugging Face transformers with the 124M shape of GPT-2 and random weights, on request.

  python benchmarks/torch/generation_worker.py float32|bfloat16

Lines `{"rows": b, "prompt_tokens": p, "new_tokens": n}` in, lines `{"seconds": s}` out.
"""

import json
import sys
import time

import torch
import transformers


def main():
  transformers.logging.set_verbosity_error()
  config = transformers.GPT2Config(vocab_size=50304, n_positions=1024)
  model = transformers.GPT2LMHeadModel(config).to(getattr(torch, sys.argv[1])).eval()
  print(
    json.dumps(
      {
        'parameters': model.num_parameters(),
        'torch': torch.__version__,
        'transformers': transformers.__version__,
        'threads': torch.get_num_threads(),
      }
    ),
    flush=True,
  )
  for line in sys.stdin:
    request = json.loads(line)
    prompts = 1 + torch.arange(request['rows'])[:, None] + torch.arange(request['prompt_tokens'])[None]
    start = time.perf_counter()
    with torch.inference_mode():
      model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        do_sample=False,
        pad_token_id=0,
        min_new_tokens=request['new_tokens'],
        max_new_tokens=request['new_tokens'],
      )
    print(json.dumps({'seconds': time.perf_counter() - start}), flush=True)


if __name__ == '__main__':
  main()
