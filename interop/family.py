"""What a family of Hugging Face models consists of."""

import dataclasses
import re
from collections.abc import Collection, Mapping

from interop.fields import Fields
from interop.rules import Rule


@dataclasses.dataclass(frozen=True)
class Family:
  """A family, both ways.

  Attributes:
    name: `model_type` of its config.json.
    architectures: classes of transformers that its config.json may name; the first is written, the last of several has
      no head.
    fields: what its config.json means.
    rules: where its tensors are.
    prefix: what the names of the bare model, without a head, lack.
    duplicates: tensors that, where no rule has them, must be equal to another one: of tied weights. {name: other}.
    buffers: pattern of tensors that are no parameters and follow from the config.
    carried: pattern of tensors of other tasks, such as a pooler; an export gives them back as they came, even where
      what they read was trained on.
    copies: tensors that transformers expects and does not read, written as another one where none was carried.
      {name: other}.
    renamed: parts of the names of the first release, with what they are today.
    objective: for which its models were trained; evaluation and further training begin with it.
    absent: tensors that may be missing whatever config.json says, and what our keys then are.
  """

  name: str
  architectures: tuple[str, ...]
  fields: Fields
  rules: tuple[Rule, ...]
  prefix: str = ''
  duplicates: Mapping[str, str] = dataclasses.field(default_factory=dict)
  buffers: str = ''
  carried: str = ''
  copies: Mapping[str, str] = dataclasses.field(default_factory=dict)
  renamed: Mapping[str, str] = dataclasses.field(default_factory=dict)
  objective: str = 'causal'
  absent: Mapping[str, Mapping] = dataclasses.field(default_factory=dict)

  def recognises(self, config: Mapping) -> bool:
    """Whether a config.json is of this family."""
    named = config.get('architectures') or ()
    return config.get('model_type') == self.name and (not named or bool(set(named) & set(self.architectures)))

  def is_bare(self, architecture: str) -> bool:
    """Whether a class of transformers has no head."""
    return architecture in self.architectures[1:][-1:]

  def name_in(self, architecture: str, tensor: str) -> str:
    """What a tensor is called in a class of transformers: names in one without a head lack the prefix."""
    return tensor.removeprefix(self.prefix) if self.is_bare(architecture) else tensor

  def without(self, keys: Mapping, tensors: Collection[str]) -> dict:
    """Keys of ours that config.json gave, corrected for those of `absent` that are not among the `tensors`."""
    corrected = dict(keys)
    for name, ours in self.absent.items():
      if name not in tensors:
        corrected |= ours
    return corrected

  def is_buffer(self, tensor: str) -> bool:
    """Whether a tensor follows from the config."""
    return bool(self.buffers) and re.fullmatch(self.buffers, tensor) is not None

  def is_carried(self, tensor: str) -> bool:
    """Whether a tensor that no rule has is kept for an export."""
    return bool(self.carried) and re.fullmatch(self.carried, tensor) is not None

  def name_today(self, tensor: str) -> str:
    """What a tensor is called now."""
    for old, new in self.renamed.items():
      tensor = tensor.replace(old, new)
    return tensor
