"""Weights of Hugging Face models, both ways.

`pretrained = read(directory)` opens a directory of transformers; `.config`, `.tokenizer` and `.params()` are those of a
model of ours. `write` makes a directory of one.
"""

from interop.families import FAMILIES
from interop.grouping import grouped
from interop.reading import Pretrained, read
from interop.writing import Origin, write

__all__ = ['FAMILIES', 'Origin', 'Pretrained', 'grouped', 'read', 'write']
