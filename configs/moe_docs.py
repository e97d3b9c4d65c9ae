"""A mixture of experts on the Python documentation, with as many active parameters as configs/quickstart.py.

  python train.py --config=configs/moe_docs.py --workdir=runs/moe_docs

All is as in the quickstart, but that in every other layer the feed-forward gives way to eight experts of half its
width, of which each token passes two: a token costs the same arithmetic, but for the router. There are fewer steps.
Variant `tiny` is for tests and takes seconds:

  python train.py --config=configs/moe_docs.py:tiny --workdir=runs/moe_tiny
"""

from configs import quickstart


def get_config(variant: str = ''):
  """The quickstart with experts, or its `tiny` variant.

  Raises:
    ValueError: the variant does not exist.
  """
  if variant not in ('', 'tiny'):
    raise ValueError(f'configs/moe_docs.py has no variant {variant!r}; there is configs/moe_docs.py:tiny')
  config = quickstart.get_config(variant)
  config.model.mlp_dim = 192 if variant else 704
  config.model.moe.mlp_dim = config.model.mlp_dim // 2
  config.model.moe.num_experts = 8
  config.model.moe.experts_per_token = 2
  config.model.moe.every = 2
  config.model.moe.normalize = True
  config.model.moe.z_loss = 0.001
  if not variant:
    config.train.steps = 320
    config.train.eval_every = 80
    config.train.checkpoint_every = 160
  return config
