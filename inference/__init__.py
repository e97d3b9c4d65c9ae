"""Text from a model: sampling and beam search over a key-value cache."""

from inference.generation import Generation, generate, prepare, sample_texts

__all__ = ['Generation', 'generate', 'prepare', 'sample_texts']
