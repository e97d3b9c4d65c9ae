"""From many key and value heads to few, each the mean of those it stands for."""

import dataclasses
from collections.abc import Iterator

import numpy as np

import model as model_lib
from interop import reading

_POOLED = tuple(f'attention/{name}/{leaf}' for name in ('key', 'value') for leaf in ('kernel', 'bias'))


@dataclasses.dataclass(frozen=True)
class Grouped(reading.Pretrained):
  """A model whose key and value heads are pooled as they are read; training on makes up for it."""

  def parts(self) -> Iterator[tuple[str, tuple[int, ...], np.ndarray]]:
    num_kv_heads = self.config.model.num_kv_heads
    for path, index, part in super().parts():
      if path.endswith(_POOLED):
        *inputs, heads, width = part.shape
        groups = part.astype(np.float32).reshape(*inputs, num_kv_heads, heads // num_kv_heads, width)
        part = groups.mean(axis=-2)
      yield path, index, part


def grouped(pretrained: reading.Pretrained, num_kv_heads: int) -> Grouped:
  """The model with fewer key and value heads, to be trained on (Ainslie et al. 2023, section 2.1: mean pooling).

  Raises:
    ValueError: the number does not divide that of the key and value heads.
  """
  heads = pretrained.config.model.num_kv_heads
  if num_kv_heads < 1 or heads % num_kv_heads:
    raise ValueError(f'num_kv_heads={num_kv_heads} does not divide the {heads} key and value heads of the model')
  config = pretrained.config.copy_and_resolve_references()
  config.model.num_kv_heads = num_kv_heads
  config.model = model_lib.resolve(config.model)
  fields = {field.name: getattr(pretrained, field.name) for field in dataclasses.fields(pretrained)}
  return Grouped(**fields | {'config': config, 'shapes': reading.parameter_shapes(config.model)})
