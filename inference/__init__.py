"""Text from a model: sampling and beam search over a key-value cache, and fill-in."""

from inference.fill import Fill, fill
from inference.generation import Generation, generate, sample_texts

__all__ = ['Fill', 'Generation', 'fill', 'generate', 'sample_texts']
