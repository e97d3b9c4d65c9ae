"""Continues prompts with the model of a run; with an encoder-decoder prompts are sources, whose targets it writes.

  python generate.py --workdir=runs/quickstart --prompt='The json module' [--prompt=... --temperature=0.7 --top_p=0.9]
  python generate.py --workdir=runs/quickstart < prompts.txt          # a prompt a line
  python generate.py --workdir=runs/bert --fill='The [MASK] sat' [--top_k=5]     # of a masked model

A single text appears on a terminal as it is generated; several texts are separated by lines of `---`.
Exit status: 0 done, 1 an error said in words, 2 bad usage.
"""

import argparse
import sys

_SEPARATOR = '---'


def parse(arguments):
  """The arguments; those of `sampling` are keyword arguments of `inference.generate`."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
  )
  parser.add_argument('--workdir', required=True, metavar='DIR', help='run directory of train.py')
  parser.add_argument('--step', type=int, metavar='STEP', help='checkpoint to use; default the last one')
  parser.add_argument(
    '--prompt',
    action='append',
    metavar='TEXT',
    help="text to continue, '' to begin a document, - to read prompts from standard input, one a "
    'line; may be given several times; default - unless that is a terminal',
  )
  parser.add_argument(
    '--fill', action='append', metavar='TEXT', help='text with [MASK] in it: the most probable tokens there, with top_k'
  )
  sampling = parser.add_argument_group('sampling')
  for name, default, text in (
    ('max_new_tokens', 64, 'tokens a continuation at most'),
    ('temperature', 1.0, 'logits are divided by it; 0 = always the most probable token'),
    ('top_k', 0, 'sample from this many most probable tokens; 0 = off'),
    ('top_p', 1.0, 'sample from the fewest tokens that have this probability together; 1 = off'),
    ('min_p', 0.0, 'sample from tokens at least this many times as probable as the best; 0 = off'),
    ('repetition_penalty', 1.0, 'above 1 makes tokens that occurred less probable'),
    ('num_beams', 1, 'above 1 = beam search, which does not sample'),
    ('length_penalty', 1.0, 'beams: above 0 favours long texts, below 0 short ones'),
    ('seed', 0, 'of the draws'),
  ):
    sampling.add_argument(f'--{name}', type=type(default), default=default, help=f'{text} (default {default})')
  sampling.add_argument(
    '--early_stopping',
    choices=('false', 'true', 'never'),
    default='false',
    help='beams: end once as many texts as beams beat what runs (false), exist (true), once none can win (never)',
  )
  sampling.add_argument('--ignore_eos', action='store_true', help='go on where the model ends the document')
  known = parser.parse_args(arguments)
  if known.fill and known.prompt:
    parser.error('--fill fills in and --prompt continues: give one of them')
  if known.prompt is None and not known.fill and sys.stdin.isatty():
    parser.error("no prompt: give --prompt=TEXT, or --prompt='' to begin a document")
  names = {action.dest for action in sampling._group_actions} - {'ignore_eos'}
  options = {name: value for name, value in vars(known).items() if name in names}
  early_stopping = {'false': False, 'true': True}.get(known.early_stopping, known.early_stopping)
  return known, options | {'stop_at_eos': not known.ignore_eos, 'early_stopping': early_stopping}


def read_prompts(given: list[str] | None) -> list[str]:
  """The prompts of the command line, `-` replaced by the lines of standard input.

  Raises:
    ValueError: a prompt is no UTF-8 text, or there is none.
  """
  prompts = []
  for prompt in ['-'] if given is None else given:
    prompts += sys.stdin.buffer.read().decode(errors='surrogateescape').splitlines() if prompt == '-' else [prompt]
  for prompt in prompts:
    if any('\ud800' <= character <= '\udfff' for character in prompt):
      raise ValueError(f'the prompt {prompt!r} is no UTF-8 text; convert it, for example with iconv')
  if not prompts:
    raise ValueError(
      "no prompt on standard input; give one a line, or --prompt=TEXT, or --prompt='' to begin a document"
    )
  return prompts


def stream(run, prompt: str, shown: str, options: dict) -> None:
  """Prints one text, behind what is `shown` of its prompt, as its tokens come."""
  import inference
  from data import tokenizers

  decoder = tokenizers.StreamDecoder(run.tokenizer, run.tokenizer.encode(shown))

  def show(_, tokens):
    print(''.join(map(decoder.push, tokens)), end='', flush=True)

  print(shown, end='', flush=True)
  inference.generate(run, [prompt], on_tokens=show, **options)
  print(decoder.finish())


def show_fills(run, texts: list[str], top_k: int) -> None:
  """Prints the most probable tokens of each mask, with their probabilities."""
  import inference

  for text, masks in zip(texts, inference.fill(run, texts, top_k=top_k or 5), strict=True):
    print(text)
    for number, fills in enumerate(masks, 1):
      print('\n'.join(f'  {number}  {fill.probability:7.2%}  {fill.text!r}' for fill in fills))


def main() -> int:
  known, options = parse(sys.argv[1:])
  sys.stdout.reconfigure(encoding='utf-8')
  from training import checkpoints

  try:
    prompts = [] if known.fill else read_prompts(known.prompt)

    import jax

    import inference
    import training
    from data import cache

    run = training.load_run(known.workdir, known.step)
    jax.config.update('jax_compilation_cache_dir', str(cache.cache_dir(run.config.data) / 'compiled'))
    family = run.config.model.family
    are_sources = family == 'encoder_decoder'
    if bool(known.fill) != (family == 'encoder'):
      advice = "an encoder fills in, --fill='The [MASK] sat', and the others continue, --prompt=TEXT"
      raise ValueError(f'{known.workdir} holds a model of model.family={family}: {advice}')
    if known.fill:
      show_fills(run, known.fill, options['top_k'])
    elif len(prompts) == 1 and sys.stdout.isatty() and options['num_beams'] == 1:
      stream(run, prompts[0], '' if are_sources else prompts[0], options)
    else:
      generations = inference.generate(run, prompts, **options)
      print(f'\n{_SEPARATOR}\n'.join(one.text if are_sources else one.prompt + one.text for one in generations))
  except (ValueError, OSError, checkpoints.CheckpointError) as error:
    print(f'error: {error}', file=sys.stderr)
    return 1
  except KeyboardInterrupt:
    print()
    return 130
  return 0


if __name__ == '__main__':
  sys.exit(main())
