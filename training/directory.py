"""What a run writes into its directory besides metrics, plots and checkpoints."""

import json
import pathlib
import shutil

import parallel
import precision
from data import tokenizers
from training import configs

# Files of the Hugging Face directory that the weights of a run came from, for the way back.
ORIGIN = 'hugging_face'


def summary_step(workdir) -> int | None:
  """The step of `summary.json`, or None where the run has not finished."""
  path = workdir / 'summary.json'
  return json.loads(path.read_text(encoding='utf-8'))['step'] if path.exists() else None


def write_identity(config, tokenizer, workdir) -> None:
  """Writes the resolved config, whole or not at all, and the tokenizer."""
  workdir.mkdir(parents=True, exist_ok=True)
  text = json.dumps(configs.to_json(config), indent=2) + '\n'
  temporary = workdir / 'config.json.tmp'
  temporary.write_text(text, encoding='utf-8')
  temporary.replace(workdir / 'config.json')
  tokenizers.save(tokenizer, workdir / 'tokenizer')


def keep_origin(config, tokenizer, workdir) -> None:
  """Takes over, from the run that this one starts from, what the way back to Hugging Face needs."""
  before = pathlib.Path(config.init_from)
  if not config.init_from or not (before / ORIGIN).is_dir() or (workdir / ORIGIN).exists():
    return
  if tokenizers.load(before / 'tokenizer').fingerprint == tokenizer.fingerprint:
    shutil.copytree(before / ORIGIN, workdir / ORIGIN)


def sample_writer(config, model, tokenizer, sampler, workdir, console):
  """A function that appends what `sampler` makes of the config's prompts to `samples.txt`, for (step, params).

  All processes call it, since the parameters lie on all their devices; the first one writes.
  """

  def write(step, params):
    prompts = list(config.train.sample_prompts)
    decoder = precision.Decoder(model, precision.policy(config.precision))
    texts = sampler(config, decoder, params, tokenizer, prompts)
    if not parallel.hosts.is_first():
      return
    between = '\n=> ' if config.model.family == 'encoder_decoder' else ''
    with (workdir / 'samples.txt').open('a', encoding='utf-8') as file:
      for prompt, text in zip(prompts, texts, strict=True):
        file.write(f'--- step {step}, prompt {prompt!r}\n{prompt}{between}{text}\n\n')
    console.message(f'step {step:,} samples in {workdir}/samples.txt')

  return write
