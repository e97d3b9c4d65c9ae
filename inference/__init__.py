"""Text from a model: sampling and beam search over a key-value cache."""

from inference.generation import Generation, generate, sample_texts

__all__ = ['Generation', 'generate', 'sample_texts']
