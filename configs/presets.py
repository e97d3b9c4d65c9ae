"""What the files in families/ have in common: published sizes of one architecture as variants of a config."""

from configs import base


def create(name: str, sizes: dict[str, dict], variant: str, objective: str = 'causal', **shared):
  """A config whose model has the values of a family and of one of its variants.

  Args:
    name: of the file in families/.
    sizes: by variant, values of the group `model`; the first is taken where no variant is named.
    variant: as given to `get_config`.
    objective: what the family was trained for.
    **shared: values that all variants have where they do not say otherwise.

  Raises:
    ValueError: there is no such variant.
  """
  variant = variant or next(iter(sizes))
  if variant not in sizes:
    raise ValueError(
      f'configs/families/{name}.py has no variant {variant!r}; use one of {", ".join(sizes)}, for example '
      f"--config=configs/families/{name}.py:{next(iter(sizes))} or model.build('{name}:{next(iter(sizes))}')"
    )
  config = base.get_config()
  config.objective.name = objective
  config.model.update(shared)
  config.model.update(sizes[variant])
  return config
